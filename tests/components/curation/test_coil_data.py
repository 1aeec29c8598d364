"""Coils in the store: virtual coils, sensitivities, half precision, acquired frequencies, and the images they give."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curation.coil_data import acquired_frequencies, read_undersampled, resample_coils
from components.curation.resampling import PlaneGrid
from components.curation.store import VolumeStore
from components.errors import BadInput
from components.ingestion.volume import ALL, Volume
from components.samples.multicoil_files import coil_sensitivities
from model_core.mri_physics.coils import VIRTUAL_COILS, compress_coils, estimate_sensitivities
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy
from model_core.mri_physics.sense import KSpaceMeasurement
from tests.helpers.corpora import tiny_volume, with_coils


def root_sum_of_squares(kspace: np.ndarray) -> np.ndarray:
    return np.sqrt((np.abs(ifft2c_numpy(kspace)) ** 2).sum(-3))


@settings(max_examples=12)
@given(coils=st.integers(1, 32), rows=st.integers(17, 40), columns=st.integers(17, 40))
def test_virtual_coils_give_the_root_sum_of_squares_of_all(coils: int, rows: int, columns: int) -> None:
    """Within 80 dB below the maximum, for 1 to 32 coils and odd sizes, without noise; empty columns stay empty."""
    rng = np.random.default_rng(coils)
    image = rng.uniform(0.5, 1, (2, 1, rows, columns)) * coil_sensitivities(rows, columns, coils)
    kspace = fft2c_numpy(image)
    kspace[..., :3] = 0
    virtual = compress_coils(kspace)
    assert virtual.shape[1] == min(coils, VIRTUAL_COILS)
    np.testing.assert_allclose(root_sum_of_squares(virtual), root_sum_of_squares(kspace), atol=1e-4 * np.abs(image).max())
    assert not virtual[..., :3].any()


def test_sensitivities_of_virtual_coils_combine_to_the_image_of_the_source() -> None:
    """Virtual coils are smooth along the rows: ESPIRiT, which assumes it, loses nothing."""
    image = tiny_volume(3, "T2-weighted", kspace=True, matrix=48).voxels[4] / 900
    virtual = compress_coils(fft2c_numpy(image * coil_sensitivities(48, 48, 16))[None])
    maps = estimate_sensitivities(virtual)
    combined = np.abs((maps.conj() * ifft2c_numpy(virtual)).sum(1))[0]
    assert np.abs(combined - image)[image > 0.3].max() < 0.03


@pytest.fixture(scope="module")
def measured() -> Volume:
    return with_coils(tiny_volume(3, "T2-weighted", kspace=True, matrix=33), 4)


def grid_of(volume: Volume, size: int, scale: float = 1.0) -> PlaneGrid:
    spacing = volume.spacing_mm[1:]
    return PlaneGrid.centered(volume.voxels.shape[1:], spacing, size, spacing[0] * scale)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", ["rss", "espirit"])
def test_the_reference_image_is_that_of_the_fully_sampled_coils(measured: Volume, reference: str) -> None:
    arrays, scale = resample_coils(measured, grid_of(measured, 33), reference)  # type: ignore[arg-type]
    np.testing.assert_allclose(root_sum_of_squares(arrays["coils"]) * scale, measured.voxels, atol=2e-3 * scale)
    np.testing.assert_allclose((np.abs(arrays["sensitivities"]) ** 2).sum(1), 1, atol=1e-3)
    inside = measured.voxels > 0.3 * scale
    np.testing.assert_allclose(arrays["voxels"][inside] * scale, measured.voxels[inside], rtol=0.05)


def test_frequencies_that_were_not_measured_are_zero_and_never_sampled(measured: Volume, tmp_path: Path) -> None:
    partial = replace(measured, acquired=(ALL, (-0.25, 0.5)))
    assert acquired_frequencies(measured, grid_of(measured, 40)).all()
    columns = acquired_frequencies(partial, grid_of(partial, 40))
    expected = np.array([k / 40 >= -0.25 - 0.5 / 33 for k in np.arange(40) - 20])
    np.testing.assert_array_equal(columns, np.broadcast_to(expected, columns.shape))
    coarse = acquired_frequencies(partial, grid_of(partial, 16, scale=2))
    assert coarse.all()  # half of the resolution lies within what was measured
    arrays, _ = resample_coils(partial, grid_of(partial, 40), "espirit")
    store = VolumeStore(tmp_path)
    for name, values in arrays.items():
        store.write("v" * 32, name, values)
    undersampled = read_undersampled(store, "v" * 32, np.ones(40, dtype=np.bool_), 4)
    np.testing.assert_array_equal(undersampled.sampling, columns)
    assert not undersampled.kspace[:, ~columns].any()
    kspace, maps = (torch.from_numpy(array)[None, :, None] for array in (undersampled.kspace, undersampled.coil_maps))
    measurement = KSpaceMeasurement(kspace, torch.from_numpy(columns)[None, None], maps)
    np.testing.assert_allclose(undersampled.image, measurement.first_image().abs()[0, 0].numpy(), atol=1e-6)


def test_half_precision_is_within_its_stated_error(measured: Volume, tmp_path: Path) -> None:
    arrays, _ = resample_coils(measured, grid_of(measured, 33), "rss")
    store = VolumeStore(tmp_path)
    store.write("v" * 32, "coils", arrays["coils"])
    assert store.shape("v" * 32, "coils") == arrays["coils"].shape == store.read("v" * 32, "coils").shape
    for part in (np.real, np.imag):
        exact, stored = part(arrays["coils"][2]), part(store.read("v" * 32, "coils", 2))
        np.testing.assert_allclose(stored, exact, rtol=2.0**-11, atol=3.1e-8)
    with pytest.raises(BadInput, match="beyond half precision"):
        store.write("v" * 32, "coils", arrays["coils"] * 1e6)
