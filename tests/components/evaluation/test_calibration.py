"""Calibration of probabilities, against scikit-learn's reliability curve."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from components.evaluation.calibration import expected_calibration_error, fit_temperature, reliability, scale_probabilities


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


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_over_and_under_confidence(sharpness: float) -> None:
    scores, truth = _sample(sharpness)
    temperature = fit_temperature(scores, truth)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    scaled = scale_probabilities(scores, temperature)
    assert expected_calibration_error(scaled, truth) < 0.03
    assert (np.diff(np.asarray(scaled)[np.argsort(scores)]) >= 0).all()


def test_one_kind_of_cases_fits_nothing() -> None:
    assert fit_temperature([0.2, 0.9], [True, True]) == 1.0 and fit_temperature([], []) == 1.0
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0.0
