"""What an evaluation says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ResultRow:
    """One metric of one task on held-out patients.

    Attributes:
        model: value of the model; baselines: of each trivial answer.
        verdict: ``"better"``, ``"worse"``, ``"no difference"`` or ``"too few patients"``, against the best baseline; see
            :func:`components.evaluation.verdicts.verdict`.
        cases, patients: how many it rests on.
        behind: the value itself is short of the best baseline's, whatever the verdict.
    """

    task: str
    metric: str
    higher_is_better: bool
    model: float
    baselines: dict[str, float]
    verdict: str
    cases: int
    patients: int

    @property
    def behind(self) -> bool:  # noqa: D102 (see the class)
        values = self.baselines.values()
        return self.model < max(values) if self.higher_is_better else self.model > min(values)


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation.

    Attributes:
        folder: ``results.json``, ``rows.parquet``, ``cases.json`` and the page; report: the page.
        cases: digest of the list of cases; two evaluations compare only where it is the same.
        reused: it had been made before.
    """

    digest: str
    folder: Path
    report: Path
    rows: tuple[ResultRow, ...]
    cases: str = ""
    reused: bool = field(default=False, compare=False)
