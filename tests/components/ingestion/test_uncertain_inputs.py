"""Inputs that look like images and are none, or whose header contradicts itself: each is refused or told by its own text."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from components.errors import MachineFault
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.voxels import FRACTIONS, NEGATIVE
from components.ingestion.label_matching import OF_ANOTHER_SCAN
from components.ingestion.volume import Volume
from tests.helpers.real_world.common import make_card, nifti_card, ramp
from tests.helpers.real_world.dicom_series import GE, add_private, edit, voxels, write_stack

SHAPE = (24, 28, 16)
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
RNG = np.random.default_rng(0)


def _mask() -> NDArray[np.uint8]:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:12, 6:15, 4:9] = 1
    return mask


def _parcels() -> NDArray[np.int32]:
    """Return 64 parcels in blocks of 6 x 7 x 4 voxels."""
    numbers = np.arange(1, 65, dtype=np.int32).reshape(4, 4, 4) * 17
    return np.kron(numbers, np.ones((6, 7, 4), np.int32))


def _save(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, path)


def _ingest(root: Path, card: Any) -> tuple[list[Volume], list[str], list[str]]:
    """Ingest ``root/source``; return volumes, reasons of the quarantine, and notices."""
    notices: list[str] = []
    try:
        notices = [notice.text for notice in ingest(card, root / "source", root / "data", DEMO_KEY).notices]
    except Exception as error:
        assert "no readable MR image" in str(error)
    volumes = [read_volume(root / "data", series, card) for series in list_series(root / "data", card.id)]
    return volumes, [entry.reason for entry in read_quarantine(root / "data", card.id)], notices


NO_IMAGES: dict[str, tuple[NDArray[Any], str]] = {
    "mask with rounding errors": (np.where(_mask() > 0, 0.99999, 1e-6), "2 different values"),
    "mask beside NaN": (np.where(_mask() > 0, np.where(ramp(SHAPE) % 2 > 0, 1.0, 2.0), np.nan), "2 different values"),
    "mask of 1 and 2": (_mask() + 1, "2 different values"),
    "mask of -1 and 0": (_mask().astype(np.int16) - 1, "2 different values"),
    "mask scaled to 1/255": ((_mask() / 255).astype(np.float32), "2 different values"),
    "parcels": (_parcels(), "regions of equal whole numbers"),
    "parcels as floats": (_parcels().astype(np.float32), "regions of equal whole numbers"),
    "offset of three billions": (np.uint32(3_000_000_000) + ramp(SHAPE).astype(np.uint32), "single precision cannot tell apart"),
    "values of 1e-50": (ramp(SHAPE) * 1e-50, "single precision cannot tell apart"),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_values_that_no_image_has_are_refused(tmp_path: Path, case: str) -> None:
    values, reason = NO_IMAGES[case]
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", values)
    volumes, reasons, _ = _ingest(tmp_path, nifti_card())
    assert not volumes
    assert len(reasons) == 1 and reason in reasons[0]


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (RNG.uniform(-np.pi, np.pi, SHAPE).astype(np.float32), NEGATIVE),
        (RNG.integers(-4096, 4095, SHAPE).astype(np.int16), NEGATIVE),
        (np.clip(RNG.normal(0.4, 0.3, SHAPE), 0, 1).astype(np.float32), FRACTIONS),
        (ramp(SHAPE), None),
        (np.where(RNG.random(SHAPE) < 0.01, -1, ramp(SHAPE)), None),
    ],
)
def test_values_that_few_images_have_are_told(tmp_path: Path, values: NDArray[Any], note: str | None) -> None:
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", values)
    volumes, _, notices = _ingest(tmp_path, nifti_card())
    assert len(volumes) == 1
    assert [text for text in notices if text in (NEGATIVE, FRACTIONS)] == ([note] if note else [])


def test_negative_values_of_a_dicom_series_are_told(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_stack(tmp_path / "source", "a", voxels(), RescaleSlope="2", RescaleIntercept="-4096")
    volumes, _, notices = _ingest(tmp_path, make_card())
    assert volumes[0].voxels.max() < 0 and notices == [NEGATIVE]


MAPS = """p1_FA p1_dti_MD p1_ADC p1_adc_map p1_T1map p1_T2-map p1_fieldmap p1_CBF p1_Tmax p1_QSM p1_R2star p1_PDFF p1_zstat1
p1_cope12 p1_tensor p1_warp p1_biasfield p1_gre_ph_a p1_pha p1_phaseimage p1_aparc+aseg p1_wmparc p1_ribbon"""


@pytest.mark.parametrize("name", MAPS.split())
def test_maps_of_any_layout_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    _save(tmp_path / "source" / f"{name}.nii.gz", ramp(SHAPE))
    volumes, reasons, _ = _ingest(tmp_path, make_card(layout={"patient": "(p[0-9])"}))
    assert not volumes and "by its name" in reasons[0]


@pytest.mark.parametrize("name", ["p1_T2star", "p1_b0", "p1_map_T1w", "family_T1w", "p1_phantom", "p1_swi"])
def test_other_names_are_those_of_images(tmp_path: Path, name: str) -> None:
    _save(tmp_path / "source" / f"{name}.nii.gz", ramp(SHAPE))
    assert len(_ingest(tmp_path, make_card(layout={"patient": "(p[0-9])"}))[0]) == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ('{"ImageType": "ORIGINAL\\\\PRIMARY\\\\P\\\\ND"}', "phase"),
        ('{"Units": "rad"}', "phase"),
        ('{"Units": "Hz"}', "a map in Hz"),
        ('{"Units": "arbitrary"}', ""),
    ],
)
def test_units_and_types_of_a_sidecar_tell_what_values_are(tmp_path: Path, fields: str, reason: str) -> None:
    _save(tmp_path / "source" / "sub-01_gre.nii.gz", ramp(SHAPE))
    (tmp_path / "source" / "sub-01_gre.json").write_text(fields)
    _, reasons, _ = _ingest(tmp_path, nifti_card())
    assert reasons == ([f"{reason} by its sidecar (Image Type or Units)"] if reason else [])


def _labels(tmp_path: Path, *names: str, **layout: Any) -> tuple[list[int], list[str], list[str]]:
    """Ingest images and masks of these names; return how many voxels of each image are labeled, reasons and notices."""
    for number, name in enumerate(names):
        values = np.roll(_mask(), number, 0) if "_seg" in name else ramp(SHAPE, number)
        _save(tmp_path / "source" / f"{name}.nii.gz", values)
    card = nifti_card(label_map={1: "lesion"}, labels=["*_seg.nii.gz"], **layout)
    volumes, reasons, notices = _ingest(tmp_path, card)
    return sorted(0 if one.labels is None else int(one.labels.sum()) for one in volumes), reasons, notices


@pytest.mark.parametrize("scans", [("A", "B"), ("1", "2"), ("left", "right"), ("sub_1_scan_1", "sub_1_scan_2")])
def test_a_mask_of_one_scan_is_not_used_for_another(tmp_path: Path, scans: tuple[str, str]) -> None:
    first, second = scans
    counts, reasons, notices = _labels(tmp_path, f"sub-01_{first}_T1w", f"sub-01_{second}_T1w", f"sub-01_{first}_seg")
    assert counts == [0, int(_mask().sum())] and not reasons and OF_ANOTHER_SCAN in notices


@pytest.mark.parametrize("label", ["sub-01_seg", "sub-01_T1w_seg", "sub-01_FLAIR_seg"])
def test_a_mask_is_used_for_all_sequences_of_its_scan(tmp_path: Path, label: str) -> None:
    counts, reasons, notices = _labels(tmp_path, "sub-01_T1w", "sub-01_FLAIR", label)
    assert counts == [int(_mask().sum())] * 2 and not reasons and OF_ANOTHER_SCAN not in notices


def test_tissue_maps_of_an_image_have_one_scale(tmp_path: Path) -> None:
    """A percentage of 30 is none of the certain voxels, although no voxel of its map is more probable."""
    smooth = RNG.random(SHAPE)
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", ramp(SHAPE))
    _save(tmp_path / "source" / "sub-01_GM.nii.gz", (_mask() * (60 + 39 * smooth)).astype(np.float32))
    _save(tmp_path / "source" / "sub-01_WM.nii.gz", ((1 - _mask()) * (10 + 20 * smooth)).astype(np.float32))
    card = nifti_card(label_map={1: "gray matter", 2: "white matter"}, tissue_maps={1: "*_GM.nii*", 2: "*_WM.nii*"})
    labels = _ingest(tmp_path, card)[0][0].labels
    assert labels is not None
    np.testing.assert_array_equal(np.bincount(labels.ravel()), [labels.size - _mask().sum(), _mask().sum()])


def test_a_mask_beside_dicom_images_has_its_own_text(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    write_stack(tmp_path / "source", "a", voxels())
    _save(tmp_path / "source" / "a_seg.nii.gz", _mask())
    card = make_card(formats=("DICOM", "NIfTI"), label_map={1: "a"}, tasks=("segmentation",), layout={"labels": ["*_seg.nii.gz"]})
    assert "all images are DICOM" in _ingest(tmp_path, card)[1][0]


def _float_pixels(dataset: Dataset) -> None:
    dataset.add_new(0x7FE00008, "OF", np.zeros((dataset.Rows, dataset.Columns), np.float32).tobytes())
    del dataset.PixelData


SLICES: dict[str, tuple[dict[str, Any], Callable[[Dataset], object] | None, str]] = {
    "pixels of 900 mm": ({"PixelSpacing": [900, 900]}, None, "pixels of implausible size: 900 x 900 mm"),
    "pixels of 0 mm": ({"PixelSpacing": [0, 1]}, None, "pixels of implausible size: 0 x 1 mm"),
    "oblique axes": ({"ImageOrientationPatient": [1, 0, 0, 0.3, 0.954, 0]}, None, "no perpendicular unit vectors"),
    "mixed components": ({"ComplexImageComponent": "MIXED"}, None, "one of several components that its header does not name"),
    "a map": ({"ImageType": ["DERIVED", "SECONDARY", "MAP", "T2"]}, None, "derived map, not magnitude"),
    "float pixels": ({}, _float_pixels, "pixels that are floating point numbers"),
    "phase in a later private block": ({"Manufacturer": GE}, None, "phase, not magnitude"),
}


@pytest.mark.parametrize("case", SLICES)
def test_slices_are_refused_by_their_cause(tmp_path: Path, case: str) -> None:
    (tmp_path / "source").mkdir()
    attributes, change, reason = SLICES[case]
    paths = write_stack(tmp_path / "source", "a", voxels(), **attributes)
    if case == "phase in a later private block":
        edit(paths, add_private(0x0043, "ANOTHER CREATOR", 0x2F, "SS", 0))
        edit(paths, add_private(0x0043, "GEMS_PARM_01", 0x2F, "SS", 1))
    elif change is not None:
        edit(paths, change)
    volumes, reasons, _ = _ingest(tmp_path, make_card())
    assert not volumes and all(reason in found for found in reasons)


@pytest.mark.parametrize(("keyword", "value"), [("RepetitionTime", "2500000"), ("EchoTime", "80000")])
def test_times_in_another_unit_are_not_used(tmp_path: Path, keyword: str, value: str) -> None:
    (tmp_path / "source").mkdir()
    write_stack(tmp_path / "source", "a", voxels(), **{keyword: value})
    acquisition = _ingest(tmp_path, make_card())[0][0].acquisition
    assert (acquisition.repetition_time_ms if keyword == "RepetitionTime" else acquisition.echo_time_ms) is None


@pytest.mark.parametrize(
    ("step", "unit", "seconds"),
    [
        (2.0, "sec", 2.0),
        (2000.0, "msec", 2.0),
        (2000.0, "sec", 2.0),
        (2000.0, "unknown", 2.0),
        (0.002, "sec", 0.0),
        (1e9, "sec", 0.0),
    ],
)
def test_time_steps_are_seconds_or_told(tmp_path: Path, step: float, unit: str, seconds: float) -> None:
    image = nib.Nifti1Image(np.stack([ramp(SHAPE, number) for number in range(3)], -1), AFFINE)
    image.header.set_zooms((1, 1, 2, step))
    image.header.set_xyzt_units("mm", unit)
    (tmp_path / "source").mkdir()
    nib.save(image, tmp_path / "source" / "sub-01_bold.nii.gz")
    card = nifti_card(sequences={"bold": "BOLD"})
    _, _, notices = _ingest(tmp_path, card)
    (stored,) = (tmp_path / "data").rglob("*.nii")
    header: Any = nib.load(stored).header
    assert header.get_zooms()[3] == pytest.approx(seconds)
    assert any("time step" in text for text in notices) == (unit != "msec" and step != 2.0)


@pytest.mark.parametrize(("magic", "is_pair"), [(b"n+1\0", True), (b"ni1\0", True), (b"ni1\0", False), (b"n+1\0", False)])
@pytest.mark.parametrize("offset", [0, 352])
def test_voxels_are_where_they_are_whatever_the_magic_says(tmp_path: Path, magic: bytes, is_pair: bool, offset: int) -> None:
    if (magic, is_pair, offset) == (b"ni1\0", True, 352):
        pytest.skip("an offset that is right: voxels at byte 352 of the second file")
    content = bytearray(nib.Nifti1Image(ramp(SHAPE), AFFINE).to_bytes())
    content[344:348], content[108:112] = magic, np.float32(offset).tobytes()
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / ("sub-01_T1w.hdr" if is_pair else "sub-01_T1w.nii")).write_bytes(content[:348] if is_pair else content)
    if is_pair:
        (folder / "sub-01_T1w.img").write_bytes(content[352:])
    volumes, reasons, _ = _ingest(tmp_path, nifti_card())
    assert not reasons
    np.testing.assert_array_equal(np.sort(volumes[0].voxels.ravel()), np.sort(ramp(SHAPE).ravel()))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("sub-02_T1w.nii", b"", "an empty file"),
        ("sub-02_T1w.nii.gz", gzip.compress(b""), "although its suffix is that of one"),
        ("sub-02_T1w.nii.gz", b"<!DOCTYPE html><html>Log in</html>", "a web page (HTML)"),
        ("sub-02_T1w.nii", nib.Nifti1Image(ramp(SHAPE), AFFINE).to_bytes()[:300], "although its suffix is that of one"),
        ("sub-02.mha", b"\0" * 1000, "although its suffix is that of one"),
    ],
)
def test_files_that_are_no_images_have_their_own_texts(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", ramp(SHAPE))
    (tmp_path / "source" / name).write_bytes(content)
    assert reason in _ingest(tmp_path, nifti_card())[1][0]


def test_long_numbers_in_decimal_strings_are_emptied_and_geometry_is_kept(tmp_path: Path) -> None:
    """A telephone number fits into a decimal string; seven digits behind the point are a position."""
    (tmp_path / "source").mkdir()
    write_stack(
        tmp_path / "source", "a", voxels(), ContrastBolusVolume="5551234567", EchoTime="12.3456789", RescaleIntercept="-1000000"
    )
    volumes, reasons, _ = _ingest(tmp_path, make_card())
    stored = pydicom.dcmread(next((tmp_path / "data").rglob("*.dcm")))
    assert not reasons and volumes[0].voxels.max() < -900_000
    assert stored.get("ContrastBolusVolume") in (None, "") and stored.EchoTime == 12.3456789


@pytest.mark.parametrize("content", ["", "{", "[]", '{"series": []}', '{"series": [{}]}'])
def test_a_damaged_manifest_is_no_fault_of_the_source(tmp_path: Path, content: str) -> None:
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", ramp(SHAPE))
    card = nifti_card()
    _ingest(tmp_path, card)
    (tmp_path / "data" / card.id / "manifest.json").write_text(content)
    with pytest.raises(MachineFault, match="the list of ingested files is damaged"):
        ingest(card, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    with pytest.raises(MachineFault, match="the list of ingested files is damaged"):
        list_series(tmp_path / "data", card.id)


@pytest.mark.parametrize("place", ["data", "data/real-world"])
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path, place: str) -> None:
    _save(tmp_path / "source" / "sub-01_T1w.nii.gz", ramp(SHAPE))
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("x")
    with pytest.raises(MachineFault, match="a file where a folder is needed"):
        ingest(nifti_card(), tmp_path / "source", tmp_path / "data", DEMO_KEY)


@pytest.mark.parametrize("tag", [0x00000002, 0x00020010, 0x00041130])
def test_a_damaged_tag_does_not_end_the_ingestion(tmp_path: Path, tag: int) -> None:
    """Elements of commands, of the file meta information and of directories have no place in a data set."""
    (tmp_path / "source").mkdir()
    paths = write_stack(tmp_path / "source", "a", voxels())
    number = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
    for path in paths:
        content = path.read_bytes()
        assert content.count(b"\x18\0\x81\0DS") == 1
        path.write_bytes(content.replace(b"\x18\0\x81\0DS", number + b"DS"))
    assert len(_ingest(tmp_path, make_card())[0]) == 1


@pytest.mark.parametrize("element", [b"\x28\0\x30\0", b"\x20\0\x37\0", b"\x20\0\x32\0"])
def test_geometry_of_a_damaged_type_is_the_fault_of_its_file(tmp_path: Path, element: bytes) -> None:
    """Pixel size, orientation or position as LS, a type that does not exist: one of two series."""
    (tmp_path / "source").mkdir()
    write_stack(tmp_path / "source", "a", voxels())
    for path in write_stack(tmp_path / "source", "b", voxels(seed=1)):
        path.write_bytes(path.read_bytes().replace(element + b"DS", element + b"LS"))
    volumes, reasons, _ = _ingest(tmp_path, make_card())
    assert len(volumes) == 1 and reasons
