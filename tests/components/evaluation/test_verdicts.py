"""Verdicts compare two scores by a jackknife over patients."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from components.evaluation.verdicts import TOO_FEW, compare_scores


def test_a_verdict_requires_a_consistent_difference_across_patients() -> None:
    patients = [f"p{i // 3}" for i in range(18)]
    clear, doubtful = [0.9] * 18, [0.9] * 15 + [-5.0] * 3

    def score(values: list[float]):  # type: ignore[no-untyped-def]
        return lambda chosen: sum(values[i] for i in chosen) / len(chosen)

    zero = score([0.0] * 18)
    assert compare_scores(score(clear), zero, patients, higher_is_better=True) == "better"
    assert compare_scores(score(clear), zero, patients, higher_is_better=False) == "worse"
    assert compare_scores(score(doubtful), zero, patients, higher_is_better=True) == "no difference"
    assert compare_scores(zero, zero, patients, higher_is_better=True) == "no difference"


@pytest.mark.parametrize("patients", [1, 3, 5])
def test_few_patients_give_no_verdict_however_clear(patients: int) -> None:
    names = [f"p{i}" for i in range(patients)]
    assert compare_scores(lambda _: 1.0, lambda _: 0.0, names, higher_is_better=True) == TOO_FEW


@given(values=st.lists(st.floats(-1, 1), min_size=6, max_size=12))
def test_one_case_per_patient_gives_the_paired_t_test(values: list[float]) -> None:
    array = np.array(values)
    assume(array.std() > 1e-3)
    test = ttest_1samp(array, 0.0)
    assume(abs(test.pvalue - 0.05) > 1e-6)
    said = compare_scores(
        lambda chosen: float(array[list(chosen)].mean()), lambda _: 0.0, [str(i) for i in range(len(array))], True
    )
    assert said == ("no difference" if test.pvalue > 0.05 else "better" if array.mean() > 0 else "worse")
