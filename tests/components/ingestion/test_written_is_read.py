"""Stored volumes equal what nibabel, SimpleITK, pydicom, NumPy and h5py read from the source, for generated volumes.

Precision of the store: NIfTI-1 stores affines in single precision; volumes are read in single precision, with 0 for NaN and
infinity; 64-bit integers of NumPy arrays are stored in single precision. All else is exact.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.uid import RLELossless

from components.ingestion.cleaning import clean_file
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms
from components.ingestion.formats.base import PlannedFile, WriteContext
from components.ingestion.formats.dicom.planned_files import PlannedDicom
from components.ingestion.formats.fastmri import PlannedKspace
from components.ingestion.formats.image_files import PlannedImage
from components.ingestion.formats.label_maps import read_labels
from components.ingestion.formats.nifti import PlannedNifti
from components.ingestion.formats.numpy_array import DIRECTIONS, PlannedArray
from components.ingestion.formats.voxels import MIN_STEPS
from components.ingestion.staging import Staging
from components.ingestion.volume import Volume
from components.registries import FORMATS
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import write_stack
from tests.helpers.real_world.kspace_files import write_fastmri
from tests.helpers.real_world.nifti_files import nifti_bytes
from tests.helpers.stored_volumes import assert_same

CARD = make_card(label_map={1: "lesion", 2: "edema", 3: "core"}, tasks=("segmentation",))
ORIENTATIONS = list(product(permutations(range(3)), product((1.0, -1.0), repeat=3)))
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
INTEGERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")
SLOPES = st.sampled_from([(1.0, 0.0), (2.0, -4096.0), (-0.5, 10.0), (0.1, 0.3), (1 / 255, 0.0), (-1.0, 0.0), (1e-4, 1e-2)])


@dataclass(frozen=True)
class Example:
    """A volume (x, y, z) and how it is stored.

    Attributes:
        scaling: slope and intercept.
        turn: permutation and signs of the axes.
        tilt: rotation about the last axis in degrees.
        is_plain: neither compressed nor in big endian order.
    """

    values: NDArray[Any]
    scaling: tuple[float, float]
    turn: tuple[tuple[int, ...], tuple[float, ...]]
    tilt: float
    spacing: tuple[float, float, float]
    is_compressed: bool
    is_big_endian: bool
    version: int

    @property
    def affine(self) -> NDArray[np.float64]:
        """Return the affine (x, y, z, 1) -> RAS+ mm."""
        axes, signs = self.turn
        sine, cosine = np.sin(np.deg2rad(self.tilt)), np.cos(np.deg2rad(self.tilt))
        rotation = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
        affine = np.eye(4)
        affine[:3, :3] = rotation @ (np.eye(3)[list(axes)] * signs) * self.spacing
        affine[:3, 3] = (-31.7, 12.25, 88.1)
        return affine


def _values(dtype: str, shape: tuple[int, int, int], seed: int, scale: float, holes: bool) -> NDArray[Any]:
    """Return noise over the range of a type of integers, or around 0 for floats, with values that are not finite."""
    random, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        return random.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
    values = random.normal(0, scale, shape) + (1j * random.normal(0, scale, shape) if kind.kind == "c" else 0)
    if holes and kind.kind == "f":
        values[0, 0, 0], values[-1, -1, -1], values[0, -1, 0] = np.nan, np.inf, -np.inf
    return np.asarray(values, dtype=kind)


def _differs(example: Example) -> bool:
    """Return whether the scaled values differ in single precision: others have no signal, and are refused."""
    slope, inter = example.scaling
    scaled = np.abs(example.values) * slope + inter if example.values.dtype.kind == "c" else example.values * float(slope) + inter
    finite = scaled[np.isfinite(scaled)]
    return bool(np.ptp(finite) > 2 * MIN_STEPS * np.spacing(np.float32(np.abs(finite).max())))


def examples(*dtypes: str) -> st.SearchStrategy[Example]:
    sides = st.tuples(st.integers(3, 5), st.integers(3, 6), st.integers(3, 4))
    values = st.builds(
        _values,
        st.sampled_from(dtypes),
        sides,
        st.integers(0, 2**32 - 1),
        st.sampled_from([1e-3, 1.0, 1e4]),
        st.booleans(),
    )
    spacing = st.sampled_from([(1.0, 1.0, 1.0), (0.9, 1.1, 4.0), (3.0, 0.5, 0.5), (0.7, 2.5, 0.7)])
    turns, tilts = st.sampled_from(ORIENTATIONS), st.sampled_from([0.0, 12.5, -31.0])
    built = st.builds(Example, values, SLOPES, turns, tilts, spacing, st.booleans(), st.booleans(), st.sampled_from([1, 2]))
    return built.filter(_differs)


def store(folder: Path, planned: PlannedFile) -> Path:
    """De-identify one file as ingestion does, and return where it is staged."""
    staging = Staging(folder / "data" / CARD.id)
    result = clean_file(planned, staging, WriteContext(CARD, Pseudonyms(DEMO_KEY, CARD.id)))
    assert result.rejection is None, result.rejection
    return staging.path(planned.target)


def read_nifti(path: Path) -> Volume:
    return FORMATS["nifti"].read([path], None, "brain")


def assert_stored_nifti(stored: Path, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Require values and affine of a stored file, through nibabel and through the reader of the product."""
    image = nib.load(stored)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), values)
    np.testing.assert_allclose(image.affine, affine, rtol=0, atol=2e-4)
    assert_same(read_nifti(stored), values, affine)


def write_nifti(path: Path, example: Example) -> Path:
    """Write an example as a single NIfTI file."""
    slope, inter = example.scaling
    content = nifti_bytes(
        example.values, example.affine, slope=slope, inter=inter, big_endian=example.is_big_endian, version=example.version
    )
    path.write_bytes(gzip.compress(content, 1) if example.is_compressed else content)
    return path


def check_nifti(folder: Path, example: Example) -> None:
    path = write_nifti(folder / ("a.nii.gz" if example.is_compressed else "a.nii"), example)
    source = nib.load(path)
    values = np.asanyarray(source.dataobj)
    values = np.abs(values) if np.iscomplexobj(values) else values
    if example.values.dtype.kind == "c":  # magnitudes are stored in the precision of their parts
        values = values.astype(np.float32 if example.values.dtype == np.complex64 else np.float64)
    assert_stored_nifti(store(folder, PlannedNifti(path, "real-world/a.nii", "image", "nifti")), values, source.affine)


def check_pair(folder: Path, example: Example) -> None:
    image = nib.Nifti1Pair(example.values, example.affine, dtype=example.values.dtype)
    image.header.set_slope_inter(*example.scaling)
    nib.save(image, folder / "a.hdr")
    source = nib.load(folder / "a.hdr")
    stored = store(folder, PlannedNifti(folder / "a.hdr", "real-world/a.nii", "image", "nifti"))
    assert_stored_nifti(stored, np.asanyarray(source.dataobj), source.affine)


def check_metaimage(folder: Path, example: Example) -> None:
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(example.values.transpose(2, 1, 0)))
    affine = LPS_TO_RAS @ example.affine
    image.SetSpacing(example.spacing)
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / example.spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(folder / "a.mha"), useCompression=example.is_compressed)
    source = SimpleITK.ReadImage(str(folder / "a.mha"))
    read = np.eye(4)
    read[:3, :3] = np.array(source.GetDirection()).reshape(3, 3) * source.GetSpacing()
    read[:3, 3] = source.GetOrigin()
    stored = store(folder, PlannedImage(folder / "a.mha", "real-world/a.nii", "image", "metaimage"))
    assert_stored_nifti(stored, SimpleITK.GetArrayFromImage(source).transpose(), LPS_TO_RAS @ read)


def check_numpy(folder: Path, example: Example) -> None:
    array = example.values.transpose(2, 1, 0)
    array = array.astype(array.dtype.newbyteorder(">")) if example.is_big_endian else array
    np.save(folder / "a.npy", np.asfortranarray(array) if example.is_compressed else np.ascontiguousarray(array))
    plane = sorted(DIRECTIONS)[example.values.shape[0] % 3]
    source = np.load(folder / "a.npy")
    stored = store(folder, PlannedArray(folder / "a.npy", "real-world/a.nii", "image", "numpy_array", None, plane))
    single = source.dtype.itemsize == 8 and source.dtype.kind in "ui"
    source = source.astype(np.float64) if source.dtype.itemsize > 8 else source
    affine = nib.load(stored).affine  # of the card; its directions have tests of their own
    assert_stored_nifti(stored, (source.astype(np.float32) if single else source).transpose(2, 1, 0), affine)


def check_dicom(folder: Path, example: Example) -> None:
    axes = example.affine[:3, :3] / example.spacing
    row, column = (LPS_TO_RAS[:3, :3] @ axes).T[:2]
    cosines = [float(f"{value:.12g}") for value in (*row, *column)]
    slope, inter = example.scaling
    voxels = np.ascontiguousarray(example.values.transpose(2, 1, 0))
    paths = write_stack(
        folder, "s", voxels, orientation=tuple(cosines), RescaleSlope=f"{slope:.9g}", RescaleIntercept=f"{inter:.9g}"
    )
    if example.is_compressed:
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.compress(RLELossless)
            dataset.save_as(path)
    stored = [store(folder, PlannedDicom(path, f"real-world/{path.name}", "image", "p")) for path in paths]
    planes = []
    for path, written in zip(paths, stored, strict=True):
        source, copy = pydicom.dcmread(path), pydicom.dcmread(written)
        np.testing.assert_array_equal(copy.pixel_array, source.pixel_array)
        assert [copy.RescaleSlope, copy.RescaleIntercept] == [source.RescaleSlope, source.RescaleIntercept]
        assert copy.ImagePositionPatient == source.ImagePositionPatient
        planes.append(source.pixel_array.astype(np.float64) * float(source.RescaleSlope) + float(source.RescaleIntercept))
    first, second = (pydicom.dcmread(path) for path in paths[:2])
    affine = np.eye(4)  # PS3.3 C.7.6.2.1.1
    affine[:3, 0], affine[:3, 1] = np.array(cosines[:3]) * first.PixelSpacing[1], np.array(cosines[3:]) * first.PixelSpacing[0]
    affine[:3, 2] = np.array(second.ImagePositionPatient, float) - np.array(first.ImagePositionPatient, float)
    affine[:3, 3] = first.ImagePositionPatient
    assert_same(FORMATS["dicom"].read(stored, None, "brain"), np.stack(planes).transpose(2, 1, 0), LPS_TO_RAS @ affine)


def check_kspace(folder: Path, example: Example) -> None:
    kspace = example.values if example.is_compressed else np.stack([example.values, example.values[:, ::-1]], 1)
    write_fastmri(folder / "a.h5", kspace)
    stored = store(folder, PlannedKspace(folder / "a.h5", "real-world/a.h5", "image", "p"))
    with h5py.File(stored) as file:
        np.testing.assert_array_equal(file["kspace"][()], kspace)
    coils = kspace.astype(np.complex64).reshape(len(kspace), -1, *kspace.shape[-2:])
    images = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(coils, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))
    expected = np.sqrt((np.abs(images) ** 2).sum(1))[:, ::-1]
    volume = FORMATS["fastmri"].read([stored], None, "brain")
    np.testing.assert_allclose(volume.voxels, expected, rtol=1e-4, atol=1e-6 * float(expected.max()))


CHECKS: dict[Callable[[Path, Example], None], st.SearchStrategy[Example]] = {
    check_nifti: examples(*INTEGERS, "f4", "f8", "c8", "c16"),
    check_pair: examples(*INTEGERS, "f4", "f8"),
    check_metaimage: examples(*INTEGERS, "f4", "f8"),
    check_numpy: examples(*INTEGERS, "f2", "f4", "f8", "g"),
    check_dicom: examples("u1", "u2", "i2"),
    check_kspace: examples("c8", "c16"),
}
CASES = st.sampled_from(list(CHECKS)).flatmap(lambda check: st.tuples(st.just(check), CHECKS[check]))


def check_case(case: tuple[Callable[[Path, Example], None], Example]) -> None:
    check, example = case
    with TemporaryDirectory() as folder:
        check(Path(folder), example)


@given(case=CASES)
@settings(max_examples=200)
def test_every_form_is_stored_as_its_library_reads_it(case: tuple[Callable[[Path, Example], None], Example]) -> None:
    check_case(case)


@pytest.mark.slow  # 5,000 volumes
@given(case=CASES)
@settings(max_examples=5000)
def test_every_form_is_stored_as_its_library_reads_it_often(case: tuple[Callable[[Path, Example], None], Example]) -> None:
    check_case(case)


@given(
    example=examples(*INTEGERS[:6], "f4", "f8"),
    slope=st.sampled_from([1.0, 1 / 255, 3 / 255, 0.25, -1.0, -1 / 85]),
    inter=st.sampled_from([0.0, 3.0]),
)
@settings(max_examples=60)
def test_labels_are_stored_as_nibabel_reads_them(example: Example, slope: float, inter: float) -> None:
    """Labels 0 to 3 in any type under any scaling that represents them: nibabel, SPM and ITK write 85, 170, 255 with slope 1/85."""
    kind = example.values.dtype
    wanted = np.random.default_rng(example.values.size).integers(0, 4, example.values.shape)
    codes = (wanted - inter) / slope
    limits = np.iinfo(kind) if kind.kind in "ui" else np.finfo(kind)
    if kind.kind in "ui" and (codes.min() < limits.min or codes.max() > limits.max or np.abs(codes - np.rint(codes)).max() > 1e-6):
        return
    stored = np.rint(codes).astype(kind) if kind.kind in "ui" else codes.astype(kind)
    with TemporaryDirectory() as name:
        folder = Path(name)
        labels = replace(example, values=stored, scaling=(slope, inter), is_compressed=False)
        path = write_nifti(folder / "l.nii", labels)
        source = nib.load(path)
        written = store(folder, PlannedNifti(path, "real-world/l.nii", "label", "nifti"))
        image = nib.Nifti1Image(np.arange(wanted.size, dtype=np.int32).reshape(wanted.shape), source.affine)
        nib.save(image, folder / "i.nii")
        volume = read_nifti(folder / "i.nii")
        found = read_labels([written], volume, CARD)
        np.testing.assert_array_equal(np.rint(np.asanyarray(source.dataobj)), wanted)
    np.testing.assert_array_equal(found.ravel(), wanted.ravel()[volume.voxels.ravel().astype(int)])
