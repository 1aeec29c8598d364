"""Calibration of probabilities, against scikit-learn's reliability curve."""

from __future__ import annotations

import numpy as np
from sklearn.calibration import calibration_curve

from components.evaluation.calibration import expected_calibration_error, reliability


def _sample(sharpness: float, count: int = 4000) -> tuple[list[float], list[bool]]:
    """Return stated probabilities whose logits are ``sharpness`` times the true ones."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, count)
    truth = rng.random(count) < 1 / (1 + np.exp(-logits))
    return (1 / (1 + np.exp(-sharpness * logits))).tolist(), truth.tolist()


def test_the_curve_is_scikit_learns() -> None:
    scores, truth = _sample(2.0)
    observed, stated = calibration_curve(truth, scores, n_bins=10)
    ours = reliability(scores, truth)
    np.testing.assert_allclose(ours[0], stated, atol=1e-9)
    np.testing.assert_allclose(ours[1], observed, atol=1e-9)
    assert ours[2].sum() == len(scores)
    assert expected_calibration_error(scores, truth) > 0.05 > expected_calibration_error(*_sample(1.0))
