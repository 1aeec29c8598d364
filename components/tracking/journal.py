"""What a stage's run is to hold, kept in the stage's folder first and told to the tracking server when it answers.

Nothing that is measured is lost when the server is away, and nothing is told twice when it comes back: the server is asked for the
last step of the figures that it has, and pictures, tags and data are told under names that stay what they are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.files import atomic_file, read_json, write_json
from components.tracking.runs import StageRun, Tracking

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JOURNAL, PICTURES = "journal.json", "pictures"
KEY = "loss"
"""A figure that every step has: where it stands, all of the step's figures are there."""
PATIENCE_S = (1.0, 3.0, 9.0, 27.0)


@dataclass
class Journal:
    """The journal of one run.

    Attributes:
        tags: of the run; inputs: data that went in; status: MLflow's word for where the run is.
        told: what the server has, by a name that includes its value; complete: it has all.
    """

    folder: Path
    run_id: str
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)
    status: str = "RUNNING"
    told: list[str] = field(default_factory=list)
    complete: bool = False

    @classmethod
    def open(cls, folder: Path, run_id: str) -> Journal:
        """The journal of a folder, as far as it was kept."""
        stored = read_json(folder / JOURNAL) if (folder / JOURNAL).exists() else {}
        return cls(folder, run_id, **stored)

    def write(self) -> None:
        """Keep it."""
        kept = ("tags", "inputs", "status", "told", "complete")
        write_json(self.folder / JOURNAL, {name: getattr(self, name) for name in kept})

    def tag(self, name: str, value: str) -> None:
        """A tag of the run."""
        self.tags[name] = value

    def input(self, name: str, digest: str, context: str, profile: Mapping[str, Any]) -> None:
        """Data that went in, by digest."""
        entry = {"name": name, "digest": digest, "context": context, "profile": dict(profile)}
        if entry not in self.inputs:
            self.inputs.append(entry)

    def picture(self, name: str, figure: Figure) -> None:
        """A picture, as PNG; ``name`` may have folders."""
        with atomic_file(self.folder / PICTURES / name) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})

    def deliver(self, tracking: Tracking, points: Sequence[Mapping[str, Any]]) -> bool:
        """Tell the server what it does not have; whether it has all now. An outage is said in one line, and is no error."""
        from mlflow.exceptions import MlflowException

        try:
            run = tracking.run(self.run_id)
            self._figures(run, points)
            for name, tell in self._entries(run):
                if name not in self.told:
                    tell()
                    self.told = [one for one in self.told if one.rpartition("=")[0] != name.rpartition("=")[0]] + [name]
            self.complete = True
        except (MlflowException, OSError) as error:
            self.complete = False
            print(f"the tracking server does not answer ({type(error).__name__}): kept in {self.folder}, told later", flush=True)
        self.write()
        return self.complete

    def insist(self, tracking: Tracking, points: Sequence[Mapping[str, Any]], patience_s: Iterable[float] = PATIENCE_S) -> bool:
        """As :meth:`deliver`, several times; for the end, when there is no later."""
        for pause in patience_s:
            if self.deliver(tracking, points):
                return True
            time.sleep(pause)
        return self.deliver(tracking, points)

    def _figures(self, run: StageRun, points: Sequence[Mapping[str, Any]]) -> None:
        known = run.last_step(KEY)
        missing = [point for point in points if point["step"] > known]
        run.log_curve((int(point["step"]), {name: x for name, x in point.items() if name != "step"}) for point in missing)

    def _entries(self, run: StageRun) -> list[tuple[str, Callable[[], None]]]:
        """``kind:name=value`` and how to tell it; the status last."""
        entries: list[tuple[str, Callable[[], None]]] = []
        for name, value in self.tags.items():
            entries.append((f"tag:{name}={value}", lambda name=name, value=value: run.set_tag(name, value)))  # type: ignore[misc]
        for one in self.inputs:
            entries.append((f"input:{one['name']}={one['digest']}", lambda one=one: run.log_dataset(**one)))  # type: ignore[misc]
        for path in sorted((self.folder / PICTURES).rglob("*.png")):
            checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            place = path.relative_to(self.folder / PICTURES)
            name = f"picture:{place}={checksum}"
            entries.append((name, lambda path=path, place=place: run.log_file(path, place.parent)))  # type: ignore[misc]
        entries.append((f"status:run={self.status}", lambda: run.set_status(self.status)))
        return entries
