"""Raw data of several coils: pre-whitened, the reference of fastMRI, acquired frequencies, lines that lie."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.catalog import GeneratedSource
from components.errors import BadInput
from components.ingestion import read_path
from components.ingestion.formats.ismrmrd import read_image
from components.ingestion.formats.kspace_lines import require_lines
from components.ingestion.volume import ALL
from components.samples.cohort import write_cohort
from components.samples.multicoil_files import correlated_noise
from model_core.mri_physics.coils import noise_covariance, whitening_matrix
from model_core.mri_physics.fourier import ifft2c_numpy


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multicoil") / "cohort"
    write_cohort(folder, GeneratedSource(anatomy="brain", form="multicoil", patients=4, difficulty=0.5))
    return folder


@given(coils=st.integers(1, 12), seed=st.integers(0, 100))
def test_whitened_noise_is_uncorrelated_and_the_signal_keeps_its_scale(coils: int, seed: int) -> None:
    noise = correlated_noise(np.random.default_rng(seed), (coils, 20, 20)).reshape(coils, -1).astype(np.complex64)
    matrix = whitening_matrix(noise_covariance(noise))
    assert matrix is not None and np.linalg.det(matrix) == pytest.approx(1, rel=1e-4)
    white = noise_covariance((matrix @ noise).astype(np.complex64))
    np.testing.assert_allclose(white, np.eye(coils) * white[0, 0].real, atol=1e-3 * white[0, 0].real)


def test_a_noise_scan_that_determines_no_covariance_is_not_used() -> None:
    assert whitening_matrix(noise_covariance(np.ones((2, 50), np.complex64))) is None
    assert whitening_matrix(np.full((2, 2), np.nan, np.complex64)) is None


@pytest.mark.parametrize("number", [0, 2])
def test_the_image_of_a_fastmri_file_is_its_own_reference(cohort: Path, number: int) -> None:
    path = cohort / f"file_{number:04d}.h5"
    volume = read_path(path)
    with h5py.File(path) as file:
        reference = file["reconstruction_rss"][()][:, ::-1]
        assert volume.kspace is not None and volume.kspace.shape[2] == file["kspace"].shape[2] // 2  # read-out oversampling
    np.testing.assert_allclose(volume.voxels, reference, atol=2.0**-11)


def test_a_noise_scan_whitens_the_background_of_the_images(cohort: Path) -> None:
    """Noise of a corner, where no tissue is, has equal variance in all coils only in the file with a noise scan."""

    def correlation(number: int) -> float:
        kspace = read_path(cohort / f"file_{number:04d}.h5").kspace
        assert kspace is not None
        corner = ifft2c_numpy(kspace)[:, :, :8, :8].transpose(1, 0, 2, 3).reshape(8, -1)
        covariance = noise_covariance(corner)
        return float(np.abs(covariance - np.diag(np.diag(covariance))).max() / np.abs(covariance).max())

    assert correlation(1) < 0.15 and correlation(3) > 0.25


@pytest.mark.parametrize("number", [2, 3])
def test_frequencies_that_partial_fourier_left_out_are_known(cohort: Path, number: int) -> None:
    full, partial = read_path(cohort / f"file_{number - 2:04d}.h5"), read_path(cohort / f"file_{number:04d}.h5")
    assert full.acquired is None and partial.acquired is not None and partial.kspace is not None
    axis = 0 if partial.acquired[0] != ALL else 1
    (low, high), other = partial.acquired[axis], partial.acquired[1 - axis]
    assert other == ALL and high - low == pytest.approx((84 - 10 - 1) / 84)
    strength = np.abs(partial.kspace).max((0, 1)).max(1 - axis)
    frequency = (np.arange(84) - 42) / 84
    is_acquired = (frequency >= low - 1e-9) & (frequency <= high + 1e-9)
    assert strength[~is_acquired].max() < 1e-4 * strength.max() and strength[is_acquired].min() > 5e-3 * strength.max()


def _zero(kspace: NDArray[Any]) -> None:
    kspace[1, :, :, 7] = 0


def _zero_in_a_coil(kspace: NDArray[Any]) -> None:
    kspace[1, 2, :, 7] = 0


def _zero_everywhere(kspace: NDArray[Any]) -> None:
    kspace[..., 7] = 0


def _repeated(kspace: NDArray[Any]) -> None:
    kspace[1, :, :, 7] = kspace[1, :, :, 3]


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (_zero, "line 7 of slice 1 is zero "),
        (_zero_in_a_coil, "line 7 of slice 1 is zero in coil 2"),
        (_zero_everywhere, "line 7 of slice 0 is zero "),
        (_repeated, "line 7 of slice 1 repeats line 3"),
    ],
)
def test_a_line_that_was_not_measured_is_named(spoil: Callable[[NDArray[Any]], None], fault: str) -> None:
    kspace = correlated_noise(np.random.default_rng(0), (3, 4, 20, 15)).astype(np.complex64)
    require_lines(kspace, "a.h5")
    spoil(kspace)
    with pytest.raises(BadInput, match=fault):
        require_lines(kspace, "a.h5")


def test_empty_slices_edges_and_coils_are_accepted_and_so_are_simulations_without_noise() -> None:
    kspace = correlated_noise(np.random.default_rng(0), (3, 4, 20, 15)).astype(np.complex64)
    kspace[0], kspace[1, 2], kspace[..., :3], kspace[..., 13:] = 0, 0, 0, 0
    require_lines(kspace, "a.h5")
    square = np.zeros((1, 1, 16, 16), np.complex64)
    square[:, :, 4:8, 4:8] = 1
    require_lines(ifft2c_numpy(square), "a.h5")


@pytest.mark.parametrize(
    ("change", "fault"),
    [("coils", "a noise scan of 3 coils beside images of 8"), ("twice", "line 4 of slice 0 is stored twice")],
)
def test_raw_data_that_contradicts_itself_is_refused(cohort: Path, tmp_path: Path, change: str, fault: str) -> None:
    with ismrmrd.File(cohort / "file_0001.h5", mode="r") as raw:
        header, lines = raw["dataset"].header, raw["dataset"].acquisitions[:40]
    if change == "coils":
        lines[0] = ismrmrd.Acquisition.from_array(np.ascontiguousarray(lines[0].data[:3]))
        lines[0].set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    else:
        lines.append(lines[5])
    with ismrmrd.File(tmp_path / "a.h5", mode="w") as raw:
        raw["dataset"].header, raw["dataset"].acquisitions = header, lines
    with pytest.raises(BadInput, match=fault):
        read_image(tmp_path / "a.h5", "", (0, 0, 0, 0))
