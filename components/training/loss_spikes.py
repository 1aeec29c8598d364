"""What is done about a step that went wrong: back to the last good checkpoint, and on with other data.

A step is wrong if its loss or its gradient is not a finite number, or if its loss is far above those before it for the third time
in a row. The same data would do the same again, so the steps between checkpoint and fault get the data that follow (as PaLM was
trained, Chowdhery et al., arXiv:2204.02311, section 5.1). ``rollbacks.json`` says what was undone and why; it is all that a resumed
run needs to do the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from components.errors import JobFailed
from components.files import read_json, write_json

ROLLBACKS = "rollbacks.json"
WINDOW, ENOUGH, IN_A_ROW = 100, 50, 3
DEVIATION = 1.4826
"""Of a normal variable: the standard deviation over the median absolute deviation."""


@dataclass(frozen=True)
class Rollback:
    """Steps ``to`` up to ``at`` were undone, and their data left out."""

    at: int
    to: int
    reason: str


@dataclass
class Guard:
    """Judges steps and keeps the record.

    Args:
        path: the record.
        deviations: how far above the losses before it a loss may be; 0 = as far as it likes.
        limit: how many rollbacks there may be.
    """

    path: Path
    deviations: float
    limit: int
    rollbacks: list[Rollback] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, deviations: float, limit: int) -> Guard:
        """The guard of a stage's folder, with what happened there before."""
        path = folder / ROLLBACKS
        return cls(path, deviations, limit, [Rollback(**one) for one in read_json(path)] if path.exists() else [])

    def data_step(self, step: int) -> int:
        """Whose data a step gets: its own, or those of so many steps later as have been left out before it."""
        return step + sum(one.at - one.to + 1 for one in self.rollbacks if one.to <= step)

    def fault(self, losses: Sequence[float], gradient_norm: float) -> str | None:
        """What is wrong with the last of ``losses``; None if nothing is. ``gradient_norm`` below 0 is DeepSpeed's "not finite"."""
        if not math.isfinite(losses[-1]):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm) or gradient_norm < 0:
            return "the gradient is not finite"
        before, last = losses[-WINDOW - IN_A_ROW : -IN_A_ROW], losses[-IN_A_ROW:]
        if not self.deviations or len(before) < ENOUGH:
            return None
        middle = statistics.median(before)
        spread = DEVIATION * statistics.median(abs(loss - middle) for loss in before)
        ceiling = middle + self.deviations * max(spread, 1e-3 * abs(middle))
        if min(last) <= ceiling:
            return None
        return f"the loss was above {ceiling:.4g} for {IN_A_ROW} steps, {middle:.4g} being the median of those before"

    def undo(self, at: int, to: int, reason: str, first_process: bool) -> None:
        """Note that training goes back from step ``at`` to the checkpoint of ``to`` finished steps.

        Raises:
            JobFailed: this has happened too often.
        """
        if len(self.rollbacks) >= self.limit:
            steps = ", ".join(str(one.at) for one in self.rollbacks) or "none"
            raise JobFailed(
                f"step {at} went wrong: {reason}. Rolled back before at steps: {steps}",
                where=str(self.path),
                remedy="lower this stage's learning_rate or lengthen warmup_steps; run omnimri validate if the data are suspect",
            )
        self.rollbacks.append(Rollback(at, to, reason))
        if first_process:
            write_json(self.path, [asdict(one) for one in self.rollbacks])
            print(f"step {at}: {reason}. Back to step {to}; the data in between are left out.", flush=True)
