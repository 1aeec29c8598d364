"""Confidence intervals of a value: a bootstrap over patients, because slices of one patient are not independent cases.

The intervals only describe. Verdicts on whether one model is better than another come from :mod:`components.evaluation.verdicts`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from components.evaluation.verdicts import MIN_PATIENTS, Score

LEVEL, RESAMPLES = 0.95, 1000


def bootstrap_interval(score: Score, patients: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """Compute the percentile bootstrap interval of a metric (scipy).

    Whole patients are resampled; resamples without a value are ignored.

    Args:
        patients: patient of every unit.

    Returns:
        Lower and upper end, or None with fewer than :data:`MIN_PATIENTS` patients.
    """
    from scipy.stats import bootstrap

    names = sorted(set(patients))
    if len(names) < MIN_PATIENTS:
        return None
    units = [[i for i, patient in enumerate(patients) if patient == name] for name in names]

    def resampled_score(chosen: np.ndarray) -> float:
        return score([i for patient in chosen.tolist() for i in units[patient]])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of a constant metric, which has no distribution
        result = bootstrap(
            (np.arange(len(names)),),
            resampled_score,
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
