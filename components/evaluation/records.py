"""What an evaluation says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ResultRow:
    """One metric of one task on held-out patients.

    Attributes:
        model: value of the model; baselines: of each trivial answer.
        verdict: ``"better"``, ``"worse"`` or ``"no difference"`` than the best baseline; see
            :func:`components.evaluation.verdicts.verdict`.
        cases, patients: how many it rests on.
    """

    task: str
    metric: str
    higher_is_better: bool
    model: float
    baselines: dict[str, float]
    verdict: str
    cases: int
    patients: int


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation.

    Attributes:
        folder: ``results.json``, ``cases.json`` and the page; report: the page.
        reused: it had been made before.
    """

    digest: str
    folder: Path
    report: Path
    rows: tuple[ResultRow, ...]
    reused: bool = field(default=False, compare=False)
