"""Local record of a stage's MLflow run: written to the stage's folder first, delivered when the tracking server is reachable.

An outage of the server loses no measurement, and its return duplicates none: metrics are delivered after the last step that the
server has, and figures, tags and inputs under names that do not change.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.files import atomic_file, read_state, write_json
from components.tracking.runs import StageRun, Tracking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JOURNAL, PICTURES = "journal.json", "pictures"
MARKER_METRIC = "loss"
"""A metric that every step has: if the server has it for a step, it has all metrics of the step."""
REFUSALS = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"})
"""Codes of errors that mean a deleted run rather than an outage."""
RETRY_DELAYS_S = (1.0, 3.0, 9.0, 27.0)


@dataclass(frozen=True)
class _Entry:
    """One item to deliver: its kind and name, a value that changes with its content, and the request that delivers it."""

    key: str
    value: str
    send: Callable[[], None]


@dataclass
class Journal:
    """The journal of one run.

    Attributes:
        folder: the stage's folder.
        run_id: MLflow run.
        tags: tags of the run; inputs: data that the stage was trained on; status: MLflow's status of the run.
        delivered: items that the server has, as ``key=value`` (``told`` in the file).
        complete: whether the server has all items.
    """

    folder: Path
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "RUNNING"
    delivered: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def open(cls, folder: Path, run_id: str) -> Journal:
        """Read the journal of a folder, or start an empty one."""
        stored = read_state(folder / JOURNAL)
        delivered = stored.pop("told", [])
        return cls(folder, run_id, **stored, delivered=delivered)

    def write(self) -> None:
        """Write the journal to its folder."""
        stored = {name: getattr(self, name) for name in ("tags", "inputs", "status", "complete")}
        write_json(self.folder / JOURNAL, {**stored, "told": self.delivered})

    def set_tag(self, name: str, value: str) -> None:
        """Set a tag of the run."""
        self.tags[name] = value

    def add_input(self, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Add a data set that the stage was trained on, by its digest."""
        entry = {"name": name, "digest": digest, "context": context, "profile": dict(profile)}
        if entry not in self.inputs:
            self.inputs.append(entry)

    def add_figure(self, name: str, figure: Figure) -> None:
        """Store a figure as PNG; ``name`` may include folders."""
        with atomic_file(self.folder / PICTURES / name) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})

    def deliver(self, tracking: Tracking, points: Sequence[Mapping[str, Any]]) -> bool:
        """Send the server what it does not have, and return whether it has everything now.

        An outage prints one line and raises no error.

        Args:
            tracking: Connection to the server.
            points: Metrics of each step, with ``step``.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = tracking.run(self.run_id)
            self._send_metrics(run, points)
            for entry in self._entries(run):
                if f"{entry.key}={entry.value}" not in self.delivered:
                    entry.send()
                    self._mark_delivered(entry)
            self.complete = True
        except (MlflowException, OSError) as error:
            self.complete = False
            refused = getattr(error, "error_code", "") in REFUSALS
            reason = f"MLflow refuses the run {self.run_id}" if refused else "the tracking server does not answer"
            remedy = "; if it was deleted, mlflow runs restore brings it back" if refused else ""
            print(f"{reason} ({type(error).__name__}): records stay in {self.folder} and are sent later{remedy}", flush=True)
        self.write()
        return self.complete

    def deliver_with_retries(
        self, tracking: Tracking, points: Sequence[Mapping[str, Any]], delays_s: Iterable[float] = RETRY_DELAYS_S
    ) -> bool:
        """Call :meth:`deliver` until it succeeds or the delays are used up: at the end of a stage, after which nothing retries."""
        for delay in delays_s:
            if self.deliver(tracking, points):
                return True
            time.sleep(delay)
        return self.deliver(tracking, points)

    def _send_metrics(self, run: StageRun, points: Sequence[Mapping[str, Any]]) -> None:
        last_step = run.last_step(MARKER_METRIC)
        missing = [point for point in points if point["step"] > last_step]
        if missing:
            run.log_steps((int(point["step"]), {name: x for name, x in point.items() if name != "step"}) for point in missing)

    def _mark_delivered(self, entry: _Entry) -> None:
        """Record an entry in place of its earlier value."""
        others = [item for item in self.delivered if item.rpartition("=")[0] != entry.key]
        self.delivered = [*others, f"{entry.key}={entry.value}"]

    def _entries(self, run: StageRun) -> list[_Entry]:
        """Return everything but the metrics, in the order of delivery; the status last."""

        def tag(name: str, value: str) -> _Entry:
            return _Entry(f"tag:{name}", value, lambda: run.set_tag(name, value))

        def dataset(item: dict[str, Any]) -> _Entry:
            return _Entry(f"input:{item['name']}", item["digest"], lambda: run.log_dataset(**item))

        def figure(path: Path) -> _Entry:
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            name = path.relative_to(self.folder / PICTURES)
            return _Entry(f"picture:{name}", checksum, lambda: run.log_file(path, name.parent))

        return [
            *(tag(name, value) for name, value in self.tags.items()),
            *(dataset(item) for item in self.inputs),
            *(figure(path) for path in sorted((self.folder / PICTURES).rglob("*.png"))),
            _Entry("status:run", self.status, lambda: run.set_status(self.status)),
        ]
