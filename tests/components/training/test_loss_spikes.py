"""Failed steps are detected, undone up to a limit, and then reported as an error with a reason."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import JobFailed
from components.files import read_json
from components.training.loss_spikes import CONSECUTIVE, Fault, LossSpikeGuard, Rollback


def _guard(folder: Path = Path("nowhere"), deviations: float = 12, limit: int = 3) -> LossSpikeGuard:
    return LossSpikeGuard.open(folder, deviations, limit)


def _noisy(count: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [2 + 0.2 * rng.gauss(0, 1) for _ in range(count)]


@pytest.mark.parametrize(
    ("loss", "norm", "what"),
    [(float("nan"), 1.0, "loss"), (float("inf"), 1.0, "loss"), (1.0, float("nan"), "gradient"), (1.0, -1.0, "gradient")],
)
def test_a_value_that_is_not_finite_is_a_fault_from_the_first_step_on(loss: float, norm: float, what: str) -> None:
    assert f"the {what} is not finite" in str(_guard().find_fault([loss], norm))


def test_a_loss_that_stays_far_above_the_others_is_a_fault() -> None:
    guard, before = _guard(), _noisy(200)
    assert all(guard.find_fault([*before, *[9.0] * count], 1.0) is None for count in range(CONSECUTIVE))
    fault = guard.find_fault([*before, *[9.0] * CONSECUTIVE], 1.0)
    assert fault is not None and "3 steps" in fault
    assert _guard(deviations=0).find_fault([*before, *[9.0] * CONSECUTIVE], 1.0) is None


@given(seed=st.integers(0, 10_000))
def test_noise_is_no_fault(seed: int) -> None:
    losses = _noisy(300, seed)
    assert all(_guard().find_fault(losses[: index + 1], 1.0) is None for index in range(0, 300, 7))


def test_a_loss_near_zero_may_rise_a_little() -> None:
    assert _guard().find_fault([*[1e-3] * 100, *[1.005e-3] * CONSECUTIVE], 1.0) is None


def test_undone_steps_use_the_data_that_follow_also_after_a_restart(tmp_path: Path) -> None:
    guard = _guard(tmp_path)
    guard.record_rollback(Fault(10, "the loss is not finite"), 5, True)
    assert [guard.data_index(step) for step in (4, 5, 6)] == [4, 11, 12]
    guard.record_rollback(Fault(7, "the loss is not finite"), 5, True)  # its data were those of step 13
    assert [guard.data_index(step) for step in (4, 5, 6)] == [4, 14, 15]
    assert _guard(tmp_path).rollbacks == guard.rollbacks == [Rollback(**item) for item in read_json(tmp_path / "rollbacks.json")]


def test_too_many_rollbacks_are_an_error_with_place_and_remedy(tmp_path: Path) -> None:
    guard = _guard(tmp_path, limit=2)
    guard.record_rollback(Fault(10, "the loss is not finite"), 5, True)
    guard.record_rollback(Fault(12, "the loss is not finite"), 5, True)
    with pytest.raises(JobFailed, match=r"step 13 failed.*not finite.*10, 12") as caught:
        guard.record_rollback(Fault(13, "the gradient is not finite"), 5, True)
    assert "learning_rate" in caught.value.remedy and "rollbacks.json" in caught.value.where
