"""Raw k-space with noise scans, of odd shapes and types: read as full k-space, or refused by its own cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.kspace_lines import require_center
from model_core.mri_physics.fourier import fft2c_numpy
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.kspace_files import phantom, write_fastmri, write_raw


def test_noise_and_dummy_lines_are_left_out_and_place_and_directions_are_kept(tmp_path: Path) -> None:
    write_raw(tmp_path / "full.h5")
    volume = read_path(tmp_path / "full.h5")
    assert sorted(volume.voxels.shape) == [1, 28, 32] and volume.spacing_mm == pytest.approx((4.0, 2.0, 2.0))
    expected = np.sqrt(2) * phantom()[16:48]  # two equal coils; readout oversampling is cropped
    for read, phase in [(10, 7), (15, 9), (20, 15), (2, 2)]:
        left, back, up = 10 + 2.0 * (read - 16), -5 + 2.0 * (phase - 14), 20.0
        index = np.linalg.inv(volume.affine) @ [-left, -back, up, 1]
        value = volume.voxels[tuple(np.rint(index[:3]).astype(int))]
        assert value == pytest.approx(expected[read, phase], abs=1e-2)


def test_partial_fourier_differs_by_its_blur_alone(tmp_path: Path) -> None:
    write_raw(tmp_path / "full.h5")
    write_raw(tmp_path / "partial.h5", first_line=7)
    full, partial = read_path(tmp_path / "full.h5"), read_path(tmp_path / "partial.h5")
    np.testing.assert_allclose(partial.affine, full.affine)
    assert np.corrcoef(partial.voxels.ravel(), full.voxels.ravel())[0, 1] > 0.97


@pytest.mark.parametrize(
    ("acquisition", "plane", "codes"),
    [("AXT2", "axial", "SPL"), ("CORPDFS_FBK", "coronal", "PIL"), ("SAGPD", "sagittal", "LIP"), ("", "axial", "SPL")],
)
def test_fastmri_has_the_plane_of_its_acquisition_in_canonical_directions(
    tmp_path: Path, acquisition: str, plane: str, codes: str
) -> None:
    """The file has no position; nibabel reads the same directions off the affine."""
    write_fastmri(tmp_path / "a.h5", _kspace())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.attrs["acquisition"] = acquisition
    volume = read_path(tmp_path / "a.h5")
    assert volume.acquisition.plane == plane and "".join(nib.orientations.aff2axcodes(volume.affine)) == codes
    center = volume.affine @ [*((np.array(volume.voxels.shape) - 1) / 2), 1]
    np.testing.assert_allclose(center, [0, 0, 0, 1], atol=1e-9)


def test_acquisitions_in_another_layout_are_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["dataset/data"] = np.arange(10)
        file["dataset/xml"] = "<a/>"
    with pytest.raises(BadInput, match="ISMRMRD acquisitions in another layout than the library's"):
        read_path(tmp_path / "a.h5")


def _kspace() -> NDArray[np.complex64]:
    image = np.zeros((3, 4, 64, 20))
    image[:, :, 20:44, 4:15] = np.random.default_rng(0).uniform(50, 100, (3, 1, 24, 11))
    return np.asarray(fft2c_numpy(image), dtype=np.complex64)


def _spoiled(value: complex) -> NDArray[np.complex64]:
    kspace = _kspace()
    kspace[0, 0, 0, 0] = value
    return kspace


@pytest.mark.parametrize(
    ("kspace", "datasets", "reason"),
    [
        (
            np.stack([_kspace().real, _kspace().imag], -1),
            {},
            r"not real and imaginary parts along the last axis \(3, 4, 64, 20, 2\)",
        ),
        (_kspace()[None], {}, r"not a complex array \(1, 3, 4, 64, 20\)"),
        (_kspace().real, {}, r"not another array \(3, 4, 64, 20\)"),
        (_kspace(), {"mask": np.ones(20, np.uint8)}, "undersampled k-space"),
        (_spoiled(complex(np.nan)), {}, "k-space with 1 values that are not finite"),
        (_spoiled(complex(0, np.inf)), {}, "k-space with 1 values that are not finite"),
    ],
    ids=["parts last", "five axes", "real", "a mask", "NaN", "infinity"],
)
def test_kspace_that_is_no_full_image_is_refused_by_name(
    tmp_path: Path, kspace: NDArray[Any], datasets: dict[str, Any], reason: str
) -> None:
    write_fastmri(tmp_path / "a.h5", kspace, **datasets)
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "a.h5")


@pytest.mark.parametrize("dtype", ["c8", "c16", ">c8"])
def test_kspace_of_any_complex_type_without_a_header_is_read(tmp_path: Path, dtype: str) -> None:
    write_fastmri(tmp_path / "a.h5", _kspace().astype(dtype))
    volume = read_path(tmp_path / "a.h5")
    assert volume.voxels.shape == (3, 64, 20) and volume.kspace is not None
    reference = np.sqrt((np.abs(_kspace()) ** 2).sum())
    assert np.sqrt((volume.voxels.astype(np.float64) ** 2).sum()) == pytest.approx(reference, rel=1e-4)  # Parseval


_XML = (
    '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><fieldOfView_mm>'
    "<x>128</x><y>40</y><z>4</z></fieldOfView_mm></encodedSpace></encoding></ismrmrdHeader>"
)


@pytest.mark.parametrize(
    ("header", "spacing_mm"),
    [(_XML, (4, 2, 2)), (None, (1, 1, 1)), ("<cut", (1, 1, 1)), (_XML.replace(">128<", ">0<"), (4, 1, 2))],
    ids=["stated", "no header", "damaged header", "zero"],
)
def test_a_size_of_voxels_that_is_assumed_is_told(
    tmp_path: Path, header: str | None, spacing_mm: tuple[float, float, float]
) -> None:
    write_fastmri(tmp_path / "source" / "a.h5", _kspace(), **({} if header is None else {"ismrmrd_header": header.encode()}))
    card = make_card(formats=("k-space HDF5",))
    notices = ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY).notices
    (series,) = list_series(tmp_path / "data", card.id)
    assert read_volume(tmp_path / "data", series, card).spacing_mm == pytest.approx(spacing_mm)
    assert any("voxels of 1 mm are assumed" in notice.text for notice in notices) == (1 in spacing_mm)


def _uncentered(kspace: NDArray[np.complex64], axes: tuple[int, ...]) -> NDArray[np.complex64]:
    return np.asarray(np.fft.ifftshift(kspace, axes=axes))


def _head(rows: int = 64, columns: int = 48, coils: int = 3) -> NDArray[np.complex64]:
    """Return noisy k-space (slices, coils, rows, columns) of a disk off the center, with coil phases."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    disk = ((x - 0.2) ** 2 + (y + 0.1) ** 2 < 0.4) * (1 + 0.3 * np.sin(9 * x) * np.cos(7 * y))
    phase = np.exp(1j * (np.arange(coils)[:, None, None] + 2 * x - 3 * y))
    noise = rng.normal(0, 0.05, (2, coils, rows, columns)) + 1j * rng.normal(0, 0.05, (2, coils, rows, columns))
    return np.asarray(fft2c_numpy(disk * phase + noise), dtype=np.complex64)


@pytest.mark.parametrize(
    ("axes", "where"),
    [((-2, -1), "row and the first column"), ((-2,), "row"), ((-1,), "column")],
    ids=["corner", "rows", "columns"],
)
@pytest.mark.parametrize("sides", [(64, 48), (63, 47), (32, 9)])
def test_kspace_whose_center_is_not_in_the_middle_is_refused(
    tmp_path: Path, axes: tuple[int, ...], where: str, sides: tuple[int, int]
) -> None:
    write_fastmri(tmp_path / "source" / "a.h5", _uncentered(_head(*sides), axes))
    reason = f"k-space whose center is at the first {where}, not in the middle"
    with pytest.raises(BadInput, match=reason) as error:
        read_path(tmp_path / "source" / "a.h5")
    assert "fftshift" in error.value.remedy
    card = make_card(formats=("k-space HDF5",))
    with pytest.raises(BadInput, match="no readable MR image"):
        ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (entry,) = read_quarantine(tmp_path / "data", card.id)
    assert (entry.kind, entry.reason) == ("unsupported", reason)


def _measured(case: str, kspace: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return k-space of which only a part was measured, zero elsewhere."""
    rows, columns = kspace.shape[-2:]
    rng, is_measured = np.random.default_rng(0), np.ones((rows, columns), np.bool_)
    if case == "every fourth line":
        is_measured[:, np.arange(columns) % 4 > 0] = False
    elif case == "random lines":
        is_measured[:, rng.random(columns) > 0.25] = False
        is_measured[:, columns // 2 - 2 : columns // 2 + 2] = True
    elif case == "partial Fourier at the start":
        is_measured[:, : columns * 3 // 8] = False
    elif case == "partial Fourier at the end":
        is_measured[:, columns * 5 // 8 :] = False
    elif case == "asymmetric echo":
        is_measured[: rows * 3 // 8] = False
    return np.where(is_measured, kspace, 0)


@pytest.mark.parametrize(
    "case",
    ["all", "every fourth line", "random lines", "partial Fourier at the start", "partial Fourier at the end", "asymmetric echo"],
)
@pytest.mark.parametrize("sides", [(64, 48), (63, 47), (16, 640)])
def test_kspace_that_was_measured_in_part_is_centered(case: str, sides: tuple[int, int]) -> None:
    require_center((np.abs(_measured(case, _head(*sides))) ** 2).sum((0, 1)), "a.h5")


@pytest.mark.parametrize("part", [9 / 16, 0.6, 5 / 8, 0.7, 3 / 4, 7 / 8])
@pytest.mark.parametrize("is_start", [True, False], ids=["first lines", "last lines"])
@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize("sides", [(64, 48), (63, 47), (256, 320)])
def test_partial_fourier_that_is_not_filled_up_is_centered(part: float, is_start: bool, axis: int, sides: tuple[int, int]) -> None:
    """The array of the measured lines may begin or end near the center of k-space."""
    kspace = np.moveaxis(_head(*sides), axis, 0)
    count = round(part * len(kspace))
    measured = np.moveaxis(kspace[:count] if is_start else kspace[len(kspace) - count :], 0, axis)
    require_center((np.abs(measured) ** 2).sum((0, 1)), "a.h5")


@pytest.mark.parametrize("part", [9 / 16, 3 / 4])
def test_partial_fourier_in_the_corner_is_refused(part: float) -> None:
    kspace = _head(64, 48)
    kspace[..., round(part * 48) :] = 0
    for axes in ((-2, -1), (-1,)):
        with pytest.raises(BadInput, match="not in the middle"):
            require_center((np.abs(_uncentered(kspace, axes)) ** 2).sum((0, 1)), "a.h5")


def test_noise_and_short_axes_are_not_judged() -> None:
    noise = np.random.default_rng(0).normal(size=(64, 48))
    require_center(noise**2, "a.h5")
    require_center(np.eye(4, 48, 24)[:1], "a.h5")
    require_center(np.zeros((64, 48)), "a.h5")
