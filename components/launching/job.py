"""What a job is, which states it passes through, and what a launcher does with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from components.provenance import digest

NAME_DIGITS, NAME_LETTERS = 10, 36


class JobState(StrEnum):
    """Where a job is.

    ``queued`` (waits for quota) -> ``pending`` (waits for a machine) -> ``starting`` (images, volumes) -> ``running`` ->
    ``succeeded`` or ``failed``; ``gone`` when nothing of it is left. A job that lost a machine goes back to ``pending``.
    """

    queued = "queued"
    pending = "pending"
    starting = "starting"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    gone = "gone"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (JobState.succeeded, JobState.failed, JobState.gone)


@dataclass(frozen=True)
class Resources:
    """What one node of a job gets, as Kubernetes quantities (``4``, ``16Gi``); it is both asked for and the limit.

    Attributes:
        gpus: whole GPUs; 0 = train on the CPU.
        shared_memory: size of ``/dev/shm``, which NCCL and data loaders use; part of ``memory``.
        scratch: local disk.
    """

    cpu: str = "4"
    memory: str = "16Gi"
    gpus: int = 0
    shared_memory: str = "2Gi"
    scratch: str = "20Gi"


@dataclass(frozen=True)
class SharedVolume:
    """A claim that every node mounts at ``path``; the submitting process sees the same files under the same path."""

    claim: str
    path: Path


@dataclass(frozen=True)
class JobSpec:
    """A Python module that runs in one or more processes which find each other (``torch.distributed``).

    A machine of one's own needs the first six fields; a cluster all of them.

    Attributes:
        name: for people and logs.
        module: run as ``python -m module argument ...``.
        arguments: passed on.
        processes: world size, over all nodes.
        folder: where logs are kept.
        environment: added to the environment.
        identity: digest of all that the job computes; a job of the same name and identity is the same job, however often it is
            submitted. Empty: made from module, arguments and processes.
        image: container image.
        nodes: machines; ``processes`` is a multiple of it.
        resources: of each node.
        volumes: what the nodes share with the submitting process.
        secrets: names of Secrets whose entries become environment variables.
        time_limit_s: seconds after which the job is ended; keep_s: seconds for which its record is kept after its end.
        grace_s: seconds between the request to stop and the end of a node: long enough for a checkpoint.
        restarts: how often the processes are started again where they are, and how often nodes are replaced after a failure.
        resumptions: how often the whole job is submitted again after an eviction, a preemption or the loss of a machine.
        pending_limit_s, image_limit_s: seconds to wait for a machine and for an image before giving up.
        priority: PriorityClass; queue: Kueue LocalQueue; node_selector, pull_secrets, service_account: as in a pod.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    processes: int
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    identity: str = ""
    image: str = ""
    nodes: int = 1
    resources: Resources = Resources()
    volumes: tuple[SharedVolume, ...] = ()
    secrets: tuple[str, ...] = ()
    time_limit_s: int = 72 * 3600
    keep_s: int = 24 * 3600
    grace_s: int = 120
    restarts: int = 3
    resumptions: int = 3
    pending_limit_s: float = 1800.0
    image_limit_s: float = 300.0
    priority: str | None = None
    queue: str | None = None
    node_selector: dict[str, str] = field(default_factory=dict)
    pull_secrets: tuple[str, ...] = ()
    service_account: str = "training"

    @property
    def key(self) -> str:
        """Name under which a launcher finds this job again: lower case, at most 47 characters."""
        identity = self.identity or digest(self.module, self.arguments, self.processes)
        readable = "".join(letter if letter.isalnum() else "-" for letter in self.name.lower())[:NAME_LETTERS].strip("-")
        return f"{readable}-{identity[:NAME_DIGITS]}"

    @property
    def processes_per_node(self) -> int:
        """Processes that share a node."""
        return self.processes // self.nodes


@dataclass(frozen=True)
class JobStatus:
    """One line of a list of jobs. ``detail`` says what it waits for or why it failed."""

    key: str
    state: JobState
    detail: str = ""
    nodes: int = 1
    created: str = ""


class Handle(Protocol):
    """A submitted job."""

    @property
    def key(self) -> str:
        """Its name (:attr:`JobSpec.key`)."""

    def status(self) -> JobStatus:
        """Where it is now."""

    def wait(self) -> None:
        """Return when it has succeeded; raise :class:`~components.errors.JobFailed` when it has not."""

    def cancel(self) -> None:
        """Ask it to stop (it may write a checkpoint first), wait until it has, and remove what was made for it."""

    def logs(self) -> str:
        """What it wrote so far, oldest first; where it has several nodes, every line says whose it is."""


class Launcher(Protocol):
    """Starts jobs and finds them again."""

    def submit(self, job: JobSpec) -> Handle:
        """Start a job, or find it if it runs already, and return at once."""

    def jobs(self) -> list[JobStatus]:
        """All jobs that it knows."""

    def clean_up(self) -> list[str]:
        """Remove what is left of jobs that ended; their names."""
