"""Calibration of p(yes): how far stated probabilities are from observed frequencies.

Guo et al., On calibration of modern neural networks, arXiv:1706.04599. :mod:`components.tasks.calibration` brings them
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 10


def expected_calibration_error(probabilities: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the mean distance between stated and observed frequency over ten equal bins, weighted by their cases."""
    stated, observed, counts = reliability(probabilities, positive)
    return float((counts * np.abs(stated - observed)).sum() / counts.sum())


def reliability(
    probabilities: Sequence[float], positive: Sequence[bool]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return the mean probability, the share of positive cases, and the number of cases of every bin that has any."""
    stated, truth = np.asarray(probabilities, np.float64), np.asarray(positive, np.float64)
    index = np.minimum((stated * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(index, minlength=BINS)
    used = counts > 0
    sums = [np.bincount(index, weights=values, minlength=BINS)[used] / counts[used] for values in (stated, truth)]
    return sums[0], sums[1], counts[used]
