"""How far a value could move with other patients: a bootstrap over patients, since slices of one patient are no independent cases.

For the eye. Whether one model is better than another is not read from these: see :mod:`components.evaluation.verdicts`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from components.evaluation.verdicts import FEWEST, Score

LEVEL, RESAMPLES = 0.95, 1000


def interval(score: Score, patients: Sequence[str], seed: int = 0) -> tuple[float, float] | None:
    """Percentile bootstrap of a metric (scipy), whole patients drawn; draws without a value count for nothing.

    Returns:
        Lower and upper end, or None with fewer than :data:`FEWEST` patients.
    """
    from scipy.stats import bootstrap

    names = sorted(set(patients))
    if len(names) < FEWEST:
        return None
    cases = [[i for i, patient in enumerate(patients) if patient == name] for name in names]

    def drawn(chosen: np.ndarray) -> float:
        return score([i for patient in chosen.tolist() for i in cases[patient]])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant metric has no distribution, and scipy says so
        found = bootstrap(
            (np.arange(len(names)),),
            drawn,
            vectorized=False,
            n_resamples=RESAMPLES,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    values = found.bootstrap_distribution[np.isfinite(found.bootstrap_distribution)]
    if not values.size:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
