"""Calibration of p(yes), beside scikit-learn's logistic regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from components.evaluation.calibration import expected_calibration_error
from components.tasks.calibration import Answer, Calibration, fit_calibration, logit


def _sample(sharpness: float, count: int = 4000) -> tuple[list[Answer], list[bool]]:
    """Return answers whose text states ``sharpness`` times the true logits, and whose masks are a second, noisy opinion."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, count)
    truth = rng.random(count) < 1 / (1 + np.exp(-logits))
    text, mask = (1 / (1 + np.exp(-x)) for x in (sharpness * logits, logits + rng.normal(0, 1, count)))
    return [Answer(*pair) for pair in zip(text.tolist(), mask.tolist(), strict=True)], truth.tolist()


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_weights_are_those_of_a_logistic_regression(sharpness: float) -> None:
    answers, truth = _sample(sharpness)
    fitted = fit_calibration(answers, truth)
    inputs = np.array([[logit(one.text), logit(one.mask or 0)] for one in answers])
    reference = LogisticRegression(C=1e6).fit(inputs, truth)
    expected = np.maximum([*reference.coef_[0], 0], 0)[:2]
    np.testing.assert_allclose([fitted.text, fitted.mask], expected, rtol=0.05, atol=0.03)  # cut-offs, and a weak pull
    alone = fit_calibration([Answer(one.text, None) for one in answers], truth)
    assert 1 / alone.text_alone == pytest.approx(sharpness, rel=0.1)
    probabilities = [alone.probability(Answer(one.text, None)) for one in answers]
    assert expected_calibration_error(probabilities, truth) < 0.03
    assert (np.diff(np.asarray(probabilities)[np.argsort([one.text for one in answers])]) >= 0).all()


def test_one_kind_of_cases_fits_nothing() -> None:
    assert fit_calibration([Answer(0.2, 0.1), Answer(0.9, None)], [True, True]) == Calibration() == fit_calibration([], [])


def test_a_probability_from_volumetry_is_the_answer() -> None:
    """It is calibrated already, so that it neither enters the fit nor is changed by it."""
    answers, truth = _sample(1.0, 400)
    measured = [Answer(0.9, None, 0.2), Answer(0.1, 0.1, 0.8)]
    fitted = fit_calibration(answers, truth)
    assert fit_calibration([*answers, *measured], [*truth, True, False]) == fitted
    assert [fitted.probability(one) for one in measured] == [0.2, 0.8]


def test_an_opinion_never_counts_against_itself() -> None:
    answers, truth = _sample(1.0)
    contrary = [Answer(1 - one.text, one.mask) for one in answers]
    assert fit_calibration(contrary, truth).text == 0


def test_a_model_without_a_fitted_calibration_weighs_both_opinions_alike(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path).probability(Answer(0.8, 0.2)) == pytest.approx(0.5)
    assert Calibration.read(tmp_path).probability(Answer(0.8, None)) == pytest.approx(0.8)
    Calibration(text=2.0).write(tmp_path)
    assert Calibration.read(tmp_path / "none", tmp_path) == Calibration(text=2.0)
