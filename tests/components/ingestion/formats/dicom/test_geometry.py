"""Every MR DICOM image has the geometry and the voxels that dcm2niix gives it."""

from __future__ import annotations

import gzip
import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import dcm2niix
import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.ingestion import ingest, list_series, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.orientation import to_canonical
from components.samples.packages import package_folder
from tests.helpers import dicom_files
from tests.helpers.real_world.dicom_series import PHILIPS, add_private, edit, transcode, voxels, write_stack

CARD = DatasetCard(id="made-up", name="Made up", rights="none", formats=("DICOM",), synthetic=True)
NIBABEL = package_folder("nibabel") / "nicom" / "tests" / "data"
PYDICOM = package_folder("pydicom") / "data" / "test_files"
PACKAGED = {
    **{path.name: [path] for path in sorted(PYDICOM.glob("MR_small*.dcm"))},
    "examples_overlay.dcm": [PYDICOM / "examples_overlay.dcm"],
    "localizer": sorted((PYDICOM / "dicomdirtests" / "98892003" / "MR1").iterdir()),
    "projections": sorted((PYDICOM / "dicomdirtests" / "98892003" / "MR700").iterdir()),
}
"""MR images in the wheels of pydicom and nibabel that dcm2niix can read. Others lack pixels or UIDs; see also BLANKED."""
BLANKED = ("siemens_dwi_0.dcm.gz", "siemens_dwi_1000.dcm.gz", "philips_mprage.dcm.gz")
"""Real headers of two mosaics and an enhanced image whose pixels were removed before publication; noise replaces them."""


def _write_stack(folder: Path, orientation: tuple[float, ...], order: list[int]) -> None:
    dicom_files.write_series(
        folder, "s", dicom_files.random_pixels(7, 10, 12), orientation, order=order, RescaleSlope=0.5, RescaleIntercept=-3
    )


def _write_echoes(folder: Path) -> None:
    for echo in (12, 40):
        dicom_files.write_series(
            folder, f"e{echo}", dicom_files.random_pixels(5, 10, 12, seed=echo), dicom_files.OBLIQUE, first=echo, EchoTime=echo
        )


def _write_times(folder: Path) -> None:
    for time in (1, 2, 3):
        dicom_files.write_series(
            folder,
            f"t{time}",
            dicom_files.random_pixels(5, 10, 12, seed=time),
            dicom_files.OBLIQUE,
            first=10 * time,
            AcquisitionNumber=time,
            TemporalPositionIdentifier=time,
        )


def _write_planes(folder: Path) -> None:
    for number, orientation in enumerate((dicom_files.AXIAL, dicom_files.SAGITTAL, dicom_files.CORONAL)):
        dicom_files.write_series(
            folder, f"p{number}", dicom_files.random_pixels(3, 10, 12, seed=number), orientation, first=1 + 3 * number
        )


def _write_enhanced(folder: Path) -> None:
    frames = [{"plane": plane, "offset": 4.0 * number} for number, plane in enumerate(dicom_files.random_pixels(6, 10, 12))]
    dicom_files.write_enhanced(folder / "e.dcm", frames[::-1], dicom_files.OBLIQUE)


def _write_enhanced_times(folder: Path) -> None:
    voxels = dicom_files.random_pixels(2, 4, 10, 12)
    frames = [
        {"plane": voxels[time, index], "offset": 4.0 * index, "time": time + 1} for time, index in product(range(2), range(4))
    ]
    # dcm2niix mixes the repeats of a Siemens file whose temporal index comes first.
    dicom_files.write_enhanced(folder / "e.dcm", frames, Manufacturer="Philips Medical Systems")


def _write_rounded(folder: Path) -> None:
    """Write pixel sizes and positions rounded differently from slice to slice."""
    for place, path in enumerate(write_stack(folder, "s", voxels(7))):
        side, offset = ("0.93749", 0.0) if place % 2 else ("0.93751", 0.003)

        def change(item: pydicom.Dataset, side: str = side, offset: float = offset) -> None:
            item.PixelSpacing = [side, side]
            item.ImagePositionPatient[0] = float(item.ImagePositionPatient[0]) + offset

        edit(path, change)


def _write_slopes(folder: Path) -> None:
    """Write a slope and an intercept of its own for each slice, and Philips' private scale slope, which is not applied."""
    for place, path in enumerate(write_stack(folder, "s", voxels(6), Manufacturer=PHILIPS)):

        def change(item: pydicom.Dataset, place: int = place) -> None:
            item.RescaleSlope, item.RescaleIntercept = str(1 + 0.25 * place), str(-10.0 * place)
            add_private(0x2005, "Philips MR Imaging DD 001", 0x0E, "FL", 0.013)(item)

        edit(path, change)


def _write_syntaxes(folder: Path) -> None:
    for number, name in enumerate(("explicit", "implicit", "big endian", "rle", "jls", "j2k", "jpeg")):
        for path in write_stack(folder / name, name, voxels(4, seed=number, rows=40, columns=36), SeriesNumber=10 + number):
            transcode(path, name)


GENERATED: dict[str, Callable[[Path], None]] = {
    "axial": lambda folder: _write_stack(folder, dicom_files.AXIAL, [0, 1, 2, 3, 4, 5, 6]),
    "sagittal, from the end": lambda folder: _write_stack(folder, dicom_files.SAGITTAL, [6, 5, 4, 3, 2, 1, 0]),
    "coronal, interleaved": lambda folder: _write_stack(folder, dicom_files.CORONAL, [0, 2, 4, 6, 1, 3, 5]),
    "oblique": lambda folder: _write_stack(folder, dicom_files.OBLIQUE, [3, 1, 2, 0, 6, 5, 4]),
    "two echoes": _write_echoes,
    "three repeats": _write_times,
    "three planes": _write_planes,
    "enhanced, oblique": _write_enhanced,
    "enhanced, two repeats": _write_enhanced_times,
    "rounded pixel sizes and positions": _write_rounded,
    "slopes of each slice": _write_slopes,
    "seven transfer syntaxes": _write_syntaxes,
}


def _convert_with_dcm2niix(folder: Path, out: Path) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return voxels and affine of every volume that dcm2niix writes."""
    out.mkdir()
    command = [dcm2niix.bin, "-z", "n", "-p", "n", "-f", "%s_%d_%e", "-o", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    volumes = []
    for path in sorted(path for path in out.glob("*.nii") if "_ROI" not in path.name):
        image = nib.load(path)
        voxels = image.get_fdata()
        for index in range(voxels.shape[3] if voxels.ndim == 4 else 1):
            volumes.append(to_canonical(nib.Nifti1Image(voxels[..., index] if voxels.ndim == 4 else voxels, image.affine)))
    return volumes


def _compare(source: Path, folder: Path) -> None:
    """Ingest and read a folder; match each volume to exactly one of dcm2niix."""
    theirs = _convert_with_dcm2niix(source, folder / "theirs")
    ingest(CARD, source, folder / "data", DEMO_KEY)
    ours = [read_volume(folder / "data", series, CARD) for series in list_series(folder / "data", CARD.id)]
    assert len(ours) == len(theirs) > 0
    for volume in ours:
        transposed = volume.voxels.transpose(2, 1, 0).astype(np.float64)
        voxels, affine = to_canonical(nib.Nifti1Image(transposed, volume.affine[:, [2, 1, 0, 3]]))
        matches = [
            number
            for number, (their_voxels, their_affine) in enumerate(theirs)
            if their_voxels.shape == voxels.shape
            and np.abs(their_affine - affine).max() < 1e-3
            and np.allclose(their_voxels, voxels, rtol=1e-6, atol=0)
        ]
        assert len(matches) == 1, volume.affine
        theirs.pop(matches[0])


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_images_have_the_geometry_of_dcm2niix(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for path in PACKAGED[name]:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        (tmp_path / "source" / path.name.removesuffix(".gz")).write_bytes(content)
    _compare(tmp_path / "source", tmp_path)


@pytest.mark.parametrize("name", BLANKED)
def test_packaged_headers_have_the_geometry_of_dcm2niix(name: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with gzip.open(NIBABEL / name) as stream:
        image = pydicom.dcmread(stream)
    if "NumberOfFrames" in image:
        image.Rows = image.Columns = 24  # equivalent to 256 for the geometry, and faster
    image.PixelData = dicom_files.random_pixels(int(image.get("NumberOfFrames", 1)), image.Rows, image.Columns).tobytes()
    image.save_as(tmp_path / "source" / "image.dcm")
    _compare(tmp_path / "source", tmp_path)


@pytest.mark.parametrize("name", GENERATED)
def test_generated_series_have_the_geometry_of_dcm2niix(name: str, tmp_path: Path) -> None:
    GENERATED[name](tmp_path / "source")
    _compare(tmp_path / "source", tmp_path)
