"""Sampling masks agree with fastMRI's definitions; undersampling zero-fills the other columns."""

from __future__ import annotations

import numpy as np
import pytest
import sigpy
from hypothesis import given
from hypothesis import strategies as st

from model_core.mri_physics.fourier import fft2c_numpy
from model_core.mri_physics.sampling_masks import center_fraction_of, create_mask, random_mask, undersample

sizes = st.sampled_from([32, 96, 97, 320, 368])
accelerations = st.sampled_from([2, 4, 6, 8])


def fastmri_random_mask(columns: int, acceleration: int, center_fraction: float, seed: int) -> np.ndarray:
    """Return the mask of the published definition (fastMRI's ``RandomMaskFunc``), implemented independently."""
    low = round(columns * center_fraction)
    probability = (columns / acceleration - low) / (columns - low)
    mask = np.random.default_rng(seed).uniform(size=columns) < probability
    pad = (columns - low + 1) // 2
    mask[pad : pad + low] = True
    return mask


@given(sizes, accelerations, st.integers(0, 2**31 - 1))
def test_the_random_mask_is_that_of_fastmri(columns: int, acceleration: int, seed: int) -> None:
    fraction = center_fraction_of(acceleration)
    expected = fastmri_random_mask(columns, acceleration, fraction, seed)
    np.testing.assert_array_equal(random_mask(columns, acceleration, fraction, seed), expected)


def test_the_challenge_pairs_acceleration_4_with_008_and_8_with_004() -> None:
    assert (center_fraction_of(4), center_fraction_of(8)) == (0.08, 0.04)


@given(sizes, accelerations, st.integers(0, 2**31 - 1))
def test_the_lowest_frequencies_are_always_sampled(columns: int, acceleration: int, seed: int) -> None:
    mask = random_mask(columns, acceleration, center_fraction_of(acceleration), seed)
    low = round(columns * center_fraction_of(acceleration))
    assert mask[columns // 2 - (low - 1) // 2 : columns // 2 + low // 2].all()
    assert mask[columns // 2]


def test_on_average_one_column_in_four_is_sampled() -> None:
    shares = [random_mask(320, 4, 0.08, seed).mean() for seed in range(400)]
    # 294 free columns at p = (80 - 26) / 294: the mean of 400 masks has a standard error of about 0.001.
    assert np.mean(shares) == pytest.approx(0.25, abs=0.005)


def test_acceleration_one_samples_all_columns() -> None:
    assert random_mask(96, 1, 1.0, 0).all()


@pytest.mark.parametrize(("acceleration", "fraction"), [(0, 0.08), (4, 0.0), (4, 0.5)])
def test_impossible_masks_are_rejected(acceleration: int, fraction: float) -> None:
    with pytest.raises(ValueError):
        random_mask(96, acceleration, fraction, 0)


@given(
    kind=st.sampled_from(["equispaced", "magic"]),
    columns=st.integers(64, 400),
    acceleration=st.sampled_from([2, 3, 4, 6, 8]),
    seed=st.integers(0, 2**32),
)
def test_the_center_is_sampled_and_the_acceleration_is_exact_to_a_quarter(
    kind: str, columns: int, acceleration: int, seed: int
) -> None:
    mask = create_mask(kind, columns, acceleration, seed)  # type: ignore[arg-type]
    center = round(columns * center_fraction_of(acceleration))
    start = (columns - center + 1) // 2
    assert mask.dtype == bool and mask.shape == (columns,) and mask[start : start + center].all()
    assert mask.sum() == pytest.approx(columns / acceleration, rel=0.25, abs=2)
    assert (mask == create_mask(kind, columns, acceleration, seed)).all()  # type: ignore[arg-type]


def test_equispaced_columns_have_one_distance() -> None:
    """Agree with fastMRI's EquispacedMaskFractionFunc: 368 columns, 8x, center .04 (15 columns) means a step of 11.4."""
    mask = create_mask("equispaced", 368, 8, 3)
    outside = np.flatnonzero(mask)
    outside = outside[(outside < 170) | (outside > 200)]
    steps = np.diff(outside)
    assert set(steps[steps < 20].tolist()) <= {11, 12}


def test_magic_columns_have_no_mirror_image() -> None:
    """For a real image, a column and its mirror image carry the same information: magic offsets sample one of both."""
    mask = create_mask("magic", 368, 4, 1)
    frequencies = np.flatnonzero(mask) - 184
    outside = {int(f) for f in frequencies if abs(f) > 20}
    assert len({f for f in outside if -f in outside}) == 0


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(33, 48)) + 1j * rng.normal(size=(33, 48))).astype(np.complex64)


def test_zero_filling_keeps_sampled_columns_only(image: np.ndarray) -> None:
    kspace, mask = fft2c_numpy(image), random_mask(48, 4, 0.08, 1)
    zero_filled, measured = undersample(kspace, mask)
    np.testing.assert_array_equal(measured[:, mask], kspace[:, mask])
    assert not measured[:, ~mask].any()
    np.testing.assert_allclose(zero_filled, np.abs(sigpy.ifft(measured)), atol=1e-5)
    assert (zero_filled.dtype, measured.dtype) == (np.float32, np.complex64)


def test_a_full_mask_returns_the_image(image: np.ndarray) -> None:
    zero_filled, _ = undersample(fft2c_numpy(image), np.ones(48, dtype=bool))
    np.testing.assert_allclose(zero_filled, np.abs(image), atol=1e-5)
