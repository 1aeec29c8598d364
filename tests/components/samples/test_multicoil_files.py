"""Generated multi-coil raw data: noise of the stated covariance, as fastMRI and as ISMRMRD, read back by their libraries."""

from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

from components.catalog import GeneratedSource
from components.samples.anatomies import ANATOMIES
from components.samples.cohort import forms, write_cohort
from components.samples.multicoil_files import COILS, NOISE_SHARE, coil_sensitivities, correlated_noise, noise_covariance

SOURCE = GeneratedSource(anatomy="brain", form="multicoil", patients=4, difficulty=0.5)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multicoil") / "cohort"
    write_cohort(folder, SOURCE)
    return folder


def test_sensitivities_are_smooth_and_have_a_sum_of_squares_of_one() -> None:
    maps = coil_sensitivities(40, 33)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1)
    assert np.abs(np.diff(maps, axis=1)).max() < 0.15 and np.abs(np.diff(maps, axis=2)).max() < 0.15


def test_noise_has_the_stated_covariance() -> None:
    covariance = noise_covariance()
    assert np.trace(covariance).real == pytest.approx(COILS) and np.linalg.eigvalsh(covariance)[0] > 0.1
    assert np.abs(covariance[0, 1]) > 0.1  # neighbors are correlated
    noise = correlated_noise(np.random.default_rng(0), (COILS, 200, 200)).reshape(COILS, -1)
    np.testing.assert_allclose(noise @ noise.conj().T / noise.shape[1], covariance, atol=0.03)


def test_every_second_file_is_raw_data_and_one_in_four_has_a_noise_scan_of_its_noise(cohort: Path) -> None:
    flags = {}
    for number in range(4):
        path = cohort / f"file_{number:04d}.h5"
        with h5py.File(path) as file:
            assert ("kspace" in file) == (number % 2 == 0)
        if number % 2:
            with ismrmrd.File(path, mode="r") as raw:
                first = raw["dataset"].acquisitions[0]
                flags[number] = first.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
                scan = first.data
            if flags[number]:
                patient = forms()["multicoil"].generate(SOURCE, number)
                expected = (NOISE_SHARE * patient.noise) ** 2 * noise_covariance()
                np.testing.assert_allclose(scan @ scan.conj().T / scan.shape[1], expected, atol=0.1 * expected.max().real)
    assert flags == {1: True, 3: False}


def test_partial_fourier_leaves_the_first_columns_out(cohort: Path) -> None:
    with h5py.File(cohort / "file_0000.h5") as full, h5py.File(cohort / "file_0002.h5") as partial:
        columns = [(np.abs(file["kspace"][()]).max((0, 1, 2)) > 0) for file in (full, partial)]
        slices, coils, rows, count = full["kspace"].shape
    anatomy = ANATOMIES["brain"]
    assert (slices, coils, rows) == (anatomy.kspace_grid.slices, COILS, 2 * anatomy.kspace_grid.pixels) and count < rows // 2
    assert columns[0].all() and columns[1].tolist() == [False] * 10 + [True] * (count - 10)
