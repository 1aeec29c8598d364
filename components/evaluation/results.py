"""Records of an evaluation: result rows, sweep, subgroups, report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from components.tasks.calibration import CALIBRATION, VOLUME_CALIBRATION
from components.tasks.kind_weights import KIND_WEIGHTS
from components.tasks.scope import FAMILIARITY, FEATURES, SCOPE
from components.tasks.volumetry import VOLUMETRY

OF_VOLUMES = "whole volumes"
"""Ending of the metrics of volumes that are read whole, beside the same volumes slice by slice."""
COHORT = "cohort.json"
"""Dataset -> split -> digests of the patients of the corpus that a model was trained and evaluated on."""


@dataclass(frozen=True)
class ResultRow:
    """One metric of one task on held-out patients.

    Attributes:
        model: value of the model.
        baselines: value of each baseline.
        verdict: ``"better"``, ``"worse"``, ``"no difference"`` or ``"too few patients"``, against the best baseline; see
            :func:`components.evaluation.verdicts.compare_scores`.
        cases, patients: their numbers.
        interval: 95 % interval of the model's value, by a bootstrap over patients; None with too few patients, or if not computed.
        behind: whether the value is worse than that of the best baseline, regardless of the verdict.
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
    def is_of_whole_volumes(self) -> bool:
        """True for a metric of volumes that are read whole."""
        return self.metric.endswith(OF_VOLUMES)

    @property
    def behind(self) -> bool:  # noqa: D102 (see the class)
        values = self.baselines.values()
        return self.model < max(values) if self.higher_is_better else self.model > min(values)


@dataclass(frozen=True)
class SweepRow:
    """Reconstruction under one kind of mask at one acceleration; ``values`` is metric -> method -> mean over the same slices."""

    mask: str
    acceleration: int
    values: dict[str, dict[str, float]]
    cases: int


@dataclass(frozen=True)
class SubgroupRow:
    """One metric of a task in one group of a factor, such as vendor: Siemens; ``baselines`` is name -> value on the same cases."""

    task: str
    metric: str
    factor: str
    group: str
    value: float
    baselines: dict[str, float]
    cases: int
    patients: int


@dataclass(frozen=True)
class EvaluationReport:
    """One evaluation.

    Attributes:
        digest: digest of the evaluation's inputs.
        folder: contains ``results.json``, ``rows.parquet``, ``cases.json``, ``cohort.json`` and the page.
        report: path of the page.
        cases: digest of the list of cases; two evaluations are comparable only if it is the same.
        note: kind of test patients.
        sweep, subgroups: further tables of the page.
        reused: whether the evaluation had been stored before.
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
    def registered_files(self) -> tuple[Path, ...]:
        """Files that are registered with the model: page, digests of patients, what decides answers, scope, familiar images."""
        names = (COHORT, CALIBRATION, VOLUME_CALIBRATION, VOLUMETRY, KIND_WEIGHTS, SCOPE, FAMILIARITY, FEATURES)
        return tuple(path for path in (self.report, *(self.folder / name for name in names)) if path.exists())
