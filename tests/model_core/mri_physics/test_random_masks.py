"""Masks as fastMRI defines them, and the zero-filled image they give."""

from __future__ import annotations

import numpy as np
import pytest
import sigpy
from hypothesis import given
from hypothesis import strategies as st

from model_core.mri_physics.fourier import fft2c, ifft2c
from model_core.mri_physics.sampling_masks import center_fraction_of, random_mask, undersample

sizes = st.sampled_from([32, 96, 97, 320, 368])
accelerations = st.sampled_from([2, 4, 6, 8])


def fastmri_random_mask(columns: int, acceleration: int, centre_fraction: float, seed: int) -> np.ndarray:
    """The published definition (fastMRI's RandomMaskFunc), written down once more with its own generator."""
    low = round(columns * centre_fraction)
    probability = (columns / acceleration - low) / (columns - low)
    mask = np.random.default_rng(seed).uniform(size=columns) < probability
    pad = (columns - low + 1) // 2
    mask[pad : pad + low] = True
    return mask


@given(sizes, accelerations, st.integers(0, 2**31 - 1))
def test_the_mask_is_that_of_fastmri(columns: int, acceleration: int, seed: int) -> None:
    fraction = center_fraction_of(acceleration)
    expected = fastmri_random_mask(columns, acceleration, fraction, seed)
    np.testing.assert_array_equal(random_mask(columns, acceleration, fraction, seed), expected)


def test_the_challenge_pairs_acceleration_4_with_008_and_8_with_004() -> None:
    assert (center_fraction_of(4), center_fraction_of(8)) == (0.08, 0.04)


@given(sizes, accelerations, st.integers(0, 2**31 - 1))
def test_the_lowest_frequencies_are_always_measured(columns: int, acceleration: int, seed: int) -> None:
    mask = random_mask(columns, acceleration, center_fraction_of(acceleration), seed)
    low = round(columns * center_fraction_of(acceleration))
    assert mask[columns // 2 - (low - 1) // 2 : columns // 2 + low // 2].all()
    assert mask[columns // 2]


def test_on_average_one_column_in_four_is_measured() -> None:
    shares = [random_mask(320, 4, 0.08, seed).mean() for seed in range(400)]
    # 294 free columns at p = (80 - 26) / 294: the mean of 400 masks has a standard error of about 0.001.
    assert np.mean(shares) == pytest.approx(0.25, abs=0.005)


def test_acceleration_one_measures_everything() -> None:
    assert random_mask(96, 1, 1.0, 0).all()


@pytest.mark.parametrize(("acceleration", "fraction"), [(0, 0.08), (4, 0.0), (4, 0.5)])
def test_impossible_masks_are_refused(acceleration: int, fraction: float) -> None:
    with pytest.raises(ValueError):
        random_mask(96, acceleration, fraction, 0)


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(33, 48)) + 1j * rng.normal(size=(33, 48))).astype(np.complex64)


def test_the_transform_is_centred_and_orthonormal_like_sigpy(image: np.ndarray) -> None:
    np.testing.assert_allclose(fft2c(image), sigpy.fft(image), atol=1e-5)
    np.testing.assert_allclose(ifft2c(fft2c(image)), image, atol=1e-5)


def test_zero_filling_keeps_measured_columns_and_nothing_else(image: np.ndarray) -> None:
    kspace, mask = fft2c(image), random_mask(48, 4, 0.08, 1)
    zero_filled, measured = undersample(kspace, mask)
    np.testing.assert_array_equal(measured[:, mask], kspace[:, mask])
    assert not measured[:, ~mask].any()
    np.testing.assert_allclose(zero_filled, np.abs(sigpy.ifft(measured)), atol=1e-5)
    assert (zero_filled.dtype, measured.dtype) == (np.float32, np.complex64)


def test_a_full_mask_gives_the_image_back(image: np.ndarray) -> None:
    zero_filled, _ = undersample(fft2c(image), np.ones(48, dtype=bool))
    np.testing.assert_allclose(zero_filled, np.abs(image), atol=1e-5)
