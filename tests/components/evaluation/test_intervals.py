"""Bootstrap intervals resample patients, not cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from components.evaluation.intervals import bootstrap_interval


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda chosen: float(values[list(chosen)].mean())


def test_the_interval_of_a_mean_is_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 100)
    low, high = bootstrap_interval(mean_of(values), [str(i) for i in range(100)]) or (0, 0)
    half = norm.ppf(0.975) * values.std() / 10
    assert (low, high) == (pytest.approx(values.mean() - half, abs=0.004), pytest.approx(values.mean() + half, abs=0.004))


def test_ten_copies_of_a_case_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.1, 12)
    once = bootstrap_interval(mean_of(values), [str(i) for i in range(12)])
    copied = bootstrap_interval(mean_of(np.repeat(values, 10)), [str(i // 10) for i in range(120)])
    assert once == pytest.approx(copied)


def test_resamples_without_a_value_are_ignored_and_few_patients_give_no_interval() -> None:
    values = np.arange(8.0)
    found = bootstrap_interval(
        lambda chosen: float("nan") if 0 in chosen else float(values[list(chosen)].mean()), [str(i) for i in range(8)]
    )
    assert found is not None and 1 <= found[0] < found[1] <= 7
    assert bootstrap_interval(mean_of(values), ["a", "b", "c", "d", "e"] + ["e"] * 3) is None
