"""Masks of the sweep: fastMRI's definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.mri_physics.sampling_masks import center_fraction_of, create_mask


@given(
    kind=st.sampled_from(["equispaced", "magic"]),
    columns=st.integers(64, 400),
    acceleration=st.sampled_from([2, 3, 4, 6, 8]),
    seed=st.integers(0, 2**32),
)
def test_the_centre_is_measured_and_the_acceleration_kept(kind: str, columns: int, acceleration: int, seed: int) -> None:
    mask = create_mask(kind, columns, acceleration, seed)  # type: ignore[arg-type]
    centre = round(columns * center_fraction_of(acceleration))
    start = (columns - centre + 1) // 2
    assert mask.dtype == bool and mask.shape == (columns,) and mask[start : start + centre].all()
    assert mask.sum() == pytest.approx(columns / acceleration, rel=0.25, abs=2)
    assert (mask == create_mask(kind, columns, acceleration, seed)).all()  # type: ignore[arg-type]


def test_equispaced_columns_have_one_distance() -> None:
    """As fastMRI's EquispacedMaskFractionFunc: 368 columns, 8x, centre .04 (15 columns) means a step of 11.4."""
    mask = create_mask("equispaced", 368, 8, 3)
    outside = np.flatnonzero(mask)
    outside = outside[(outside < 170) | (outside > 200)]
    steps = np.diff(outside)
    assert set(steps[steps < 20].tolist()) <= {11, 12}


def test_magic_columns_are_not_each_others_mirror() -> None:
    """A column and its mirror image say the same of a real image: magic offsets measure one of both."""
    mask = create_mask("magic", 368, 4, 1)
    frequencies = np.flatnonzero(mask) - 184
    outside = {int(f) for f in frequencies if abs(f) > 20}
    assert len({f for f in outside if -f in outside}) == 0
