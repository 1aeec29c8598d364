"""Result of one task, and the scoring that tasks share: rows with verdict and interval, scores over cases, examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.intervals import bootstrap_interval
from components.evaluation.results import ResultRow, SweepRow
from components.evaluation.verdicts import Score, compare_scores
from components.tasks.calibration import Calibration

if TYPE_CHECKING:
    from components.curation.corpus import Corpus
    from components.evaluation.model_answers import Case

EXAMPLES, WORST = 4, 4
"""Smallest number of examples, and number of worst cases."""
__all__ = [
    "EXAMPLES",
    "Panel",
    "Score",
    "ScoredUnits",
    "TaskResult",
    "build_row",
    "example_cases",
    "mean_score",
    "pair_score",
    "worst_cases",
]


@dataclass(frozen=True)
class Panel:
    """One image of the page; boxes are (row0, col0, row1, col1) in pixels."""

    title: str
    image: NDArray[Any]
    boxes: tuple[tuple[float, float, float, float], ...] = ()


@dataclass(frozen=True)
class ScoredUnits:
    """The metric of a task that is shown for subgroups.

    Attributes:
        score, baselines: of the model and of each baseline, over the units (cases or volumes) that the metric counts.
        volumes: volume_id of every unit.
    """

    metric: str
    score: Score
    baselines: Mapping[str, Score]
    volumes: tuple[str, ...]


@dataclass
class TaskResult:
    """Rows of one task and its examples on the page.

    Attributes:
        pictures: examples as rows of panels.
        texts: examples as (question, truth, answer).
        worst_pictures, worst_texts: the same for the cases with the lowest score, worst first.
        units: first metric, for subgroups; None = no subgroups.
        structures: name -> Dice of every case.
        roc: p(yes) and truth of every case.
        uncalibrated: p(yes) of every case before calibration.
        calibration, volume_calibration: of p(yes) about slices and about whole volumes, fitted on validation patients.
        sweep: reconstruction under other masks.
    """

    rows: list[ResultRow] = field(default_factory=list)
    pictures: list[list[Panel]] = field(default_factory=list)
    texts: list[tuple[str, str, str]] = field(default_factory=list)
    worst_pictures: list[list[Panel]] = field(default_factory=list)
    worst_texts: list[tuple[str, str, str]] = field(default_factory=list)
    units: ScoredUnits | None = None
    structures: dict[str, list[float]] = field(default_factory=dict)
    roc: tuple[list[float], list[bool]] | None = None
    uncalibrated: list[float] | None = None
    calibration: Calibration | None = None
    volume_calibration: Calibration | None = None
    sweep: list[SweepRow] = field(default_factory=list)


def build_row(
    task: str,
    metric: str,
    higher_is_better: bool,
    model: Score,
    baselines: Mapping[str, Score],
    patients: Sequence[str],
    cases: int,
    bootstrapped: Score | None = None,
) -> ResultRow:
    """Compute the scores over all units, compare the model with the best baseline, and bootstrap ``bootstrapped`` if given.

    Args:
        patients: patient of every unit.
        cases: number of cases that the units consist of.
    """
    units = range(len(patients))
    values = {name: score(units) for name, score in baselines.items()}
    best = (max if higher_is_better else min)(values, key=lambda name: values[name])
    verdict = compare_scores(model, baselines[best], patients, higher_is_better)
    interval = None if bootstrapped is None else bootstrap_interval(bootstrapped, patients)
    return ResultRow(task, metric, higher_is_better, model(units), values, verdict, cases, len(set(patients)), interval)


def mean_score(values: Sequence[float]) -> Score:
    """Return a score that averages the values of the chosen units."""
    array = np.asarray(values)
    return lambda chosen: float(array[list(chosen)].mean())


def pair_score(metric: Callable[[Any, Any], float], predicted: Sequence[Any], truth: Sequence[Any]) -> Score:
    """Return a score that applies a metric to the predictions and truths of the chosen units."""
    return lambda chosen: metric([predicted[i] for i in chosen], [truth[i] for i in chosen])


def example_cases(cases: Sequence[Case], corpus: Corpus, among: Sequence[int] | None = None) -> list[int]:
    """Return the indices of the cases that the page shows: the first of each anatomy, and at least :data:`EXAMPLES`.

    Structures, answers and patients alternate in the order of the cases.

    Args:
        among: indices to choose from; None = all.
    """
    indices = list(range(len(cases)) if among is None else among)
    first = {corpus.volumes[cases[i].record.volume_id].anatomy: i for i in reversed(indices)}
    others = [i for i in indices if i not in first.values()]
    return sorted([*first.values(), *others[: max(0, EXAMPLES - len(first))]])


def worst_cases(scores: Sequence[float]) -> list[int]:
    """Return the indices of the cases with the lowest scores, worst first."""
    return sorted(range(len(scores)), key=lambda i: (scores[i], i))[:WORST]
