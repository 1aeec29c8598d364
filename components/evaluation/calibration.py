"""Calibration of p(yes): how far stated probabilities are from observed frequencies, and the temperature that brings them together.

Guo et al., On calibration of modern neural networks, arXiv:1706.04599. The temperature is fitted on validation patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 10
_SMALLEST, _COLDEST, _HOTTEST = 1e-6, 0.05, 20.0


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


def fit_temperature(probabilities: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the temperature with the least cross-entropy; 1 unless there are cases of both kinds."""
    from scipy.optimize import minimize_scalar

    if len(set(positive)) < 2:
        return 1.0
    truth = np.asarray(positive, np.float64)

    def cross_entropy(log_temperature: float) -> float:
        p = np.clip(scale_probabilities(probabilities, float(np.exp(log_temperature))), _SMALLEST, 1 - _SMALLEST)
        return float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    return float(np.exp(minimize_scalar(cross_entropy, bounds=bounds, method="bounded").x))


def scale_probabilities(probabilities: Sequence[float], temperature: float) -> list[float]:
    """Divide the logits of probabilities by a temperature: above 1, answers become less certain; their order stays."""
    p = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST)
    return [float(value) for value in 1 / (1 + np.exp(-np.log(p / (1 - p)) / temperature))]
