"""What a job is, and what a launcher does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class JobSpec:
    """A Python module that runs in one or more processes which find each other (``torch.distributed``).

    Attributes:
        name: for people and logs.
        module: run as ``python -m module argument ...``.
        arguments: passed on.
        processes: world size.
        folder: where logs are kept.
        environment: added to the environment.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    processes: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)


class Handle(Protocol):
    """A submitted job."""

    def wait(self) -> None:
        """Return when it has succeeded; raise :class:`~components.errors.JobFailed` when it has not."""

    def cancel(self) -> None:
        """Ask it to stop (it may write a checkpoint first), and wait until it has."""

    def logs(self) -> str:
        """What it wrote so far."""


class Launcher(Protocol):
    """Starts jobs."""

    def submit(self, job: JobSpec) -> Handle:
        """Start a job and return at once."""
