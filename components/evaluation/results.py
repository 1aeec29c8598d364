"""What an evaluation says."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

COHORT = "cohort.json"
"""Dataset -> split -> digests of the patients of the corpus that a model was trained and evaluated on."""


@dataclass(frozen=True)
class ResultRow:
    """One metric of one task on held-out patients.

    Attributes:
        model: value of the model; baselines: of each trivial answer.
        verdict: ``"better"``, ``"worse"``, ``"no difference"`` or ``"too few patients"``, against the best baseline; see
            :func:`components.evaluation.verdicts.verdict`.
        cases, patients: how many it rests on.
        interval: 95 % of the model's value, by a bootstrap over patients; None with too few, or where none is made.
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
    interval: tuple[float, float] | None = None

    @property
    def behind(self) -> bool:  # noqa: D102 (see the class)
        values = self.baselines.values()
        return self.model < max(values) if self.higher_is_better else self.model > min(values)


@dataclass(frozen=True)
class SweepRow:
    """Reconstruction under one kind of mask at one acceleration: metric -> who -> mean over the same slices."""

    mask: str
    acceleration: int
    values: dict[str, dict[str, float]]
    cases: int


@dataclass(frozen=True)
class SubgroupRow:
    """A task's first metric in one group of a factor, such as vendor: Siemens."""

    task: str
    metric: str
    factor: str
    group: str
    value: float
    cases: int
    patients: int


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation.

    Attributes:
        folder: ``results.json``, ``rows.parquet``, ``cases.json`` and the page; report: the page.
        cases: digest of the list of cases; two evaluations compare only where it is the same.
        note: what kind of patients it rests on; sweep, subgroups: what the page shows beyond the rows.
        reused: it had been made before.
    """

    digest: str
    folder: Path
    report: Path
    rows: tuple[ResultRow, ...]
    cases: str = ""
    note: str = ""
    sweep: tuple[SweepRow, ...] = ()
    subgroups: tuple[SubgroupRow, ...] = ()
    reused: bool = field(default=False, compare=False)

    @property
    def kept(self) -> tuple[Path, ...]:
        """What goes with a model that is registered: the page, and the digests of the corpus's patients."""
        return tuple(path for path in (self.report, self.folder / COHORT) if path.exists())
