"""Recovery from failed steps: return to the last valid checkpoint and continue with other data.

A step fails if its loss or its gradient is not finite, or if its loss is far above the previous losses for the third time in a row.
The same data would cause the same failure, so the steps between checkpoint and fault use the data that follow (as in the training
of PaLM, Chowdhery et al., arXiv:2204.02311, section 5.1). ``rollbacks.json`` records what was undone and why; a resumed run needs
nothing else to repeat it.
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
WINDOW, MIN_HISTORY, CONSECUTIVE = 100, 50, 3
"""Losses that a loss is compared with; fewest of them for a comparison; losses in a row that must exceed the threshold."""
SIGMA_PER_MAD = 1.4826
"""Ratio of the standard deviation to the median absolute deviation of a normal variable."""


@dataclass(frozen=True)
class Fault:
    """A failed step (from 0) and the reason."""

    step: int
    reason: str


@dataclass(frozen=True)
class Rollback:
    """An undone range of steps, from ``to`` up to and including ``at``; their data are skipped."""

    at: int
    to: int
    reason: str


@dataclass
class LossSpikeGuard:
    """Detector of failed steps, with the record of rollbacks.

    Args:
        path: The record.
        deviations: Robust standard deviations by which a loss may exceed the median of the previous losses; 0 = no limit.
        limit: Maximum number of rollbacks.
    """

    path: Path
    deviations: float
    limit: int
    rollbacks: list[Rollback] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path, deviations: float, limit: int) -> LossSpikeGuard:
        """Return the guard of a stage's folder, with the rollbacks recorded there."""
        path = folder / ROLLBACKS
        return cls(path, deviations, limit, [Rollback(**item) for item in read_json(path)] if path.exists() else [])

    def data_index(self, step: int) -> int:
        """Return the data index for a step, shifted past the data skipped by earlier rollbacks."""
        return step + sum(rollback.at - rollback.to + 1 for rollback in self.rollbacks if rollback.to <= step)

    def find_fault(self, losses: Sequence[float], gradient_norm: float) -> str | None:
        """Return what is wrong with the last of ``losses``, None if nothing is.

        A ``gradient_norm`` below 0 is DeepSpeed's value for "not finite".
        """
        if not math.isfinite(losses[-1]):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm) or gradient_norm < 0:
            return "the gradient is not finite"
        history, recent = losses[-WINDOW - CONSECUTIVE : -CONSECUTIVE], losses[-CONSECUTIVE:]
        if not self.deviations or len(history) < MIN_HISTORY:
            return None
        median = statistics.median(history)
        spread = SIGMA_PER_MAD * statistics.median(abs(loss - median) for loss in history)
        threshold = median + self.deviations * max(spread, 1e-3 * abs(median))
        if min(recent) <= threshold:
            return None
        return f"the loss was above {threshold:.4g} for {CONSECUTIVE} steps, with a median of {median:.4g} before"

    def record_rollback(self, fault: Fault, target: int, is_first_process: bool) -> None:
        """Record that training returns from a failed step to the checkpoint of ``target`` finished steps.

        Raises:
            JobFailed: the limit of rollbacks is reached.
        """
        if len(self.rollbacks) >= self.limit:
            steps = ", ".join(str(rollback.at) for rollback in self.rollbacks) or "none"
            raise JobFailed(
                f"step {fault.step} failed: {fault.reason}. Earlier rollbacks at steps: {steps}",
                where=str(self.path),
                remedy="lower this stage's learning_rate or lengthen warmup_steps; run omnimri validate if the data are suspect",
            )
        self.rollbacks.append(Rollback(fault.step, target, fault.reason))
        if is_first_process:
            write_json(self.path, [asdict(rollback) for rollback in self.rollbacks])
            print(f"step {fault.step}: {fault.reason}. Back to step {target}; the data in between are skipped.", flush=True)
