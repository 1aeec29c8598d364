"""NIfTI files are recognized by their content and read as nibabel and ITK read them; guesses are refused or told."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.catalog import DatasetCard
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats import nifti
from components.ingestion.formats.nifti_header import geometry, is_analyze, parse_header
from components.ingestion.volume import IngestReport, Volume
from tests.helpers.real_world.common import nifti_card, ramp
from tests.helpers.real_world.nifti_files import nifti_bytes, write_nifti_file

TURNED = np.array([[0, 0, 1.5, -10], [1.0, 0, 0, -20], [0, 1.0, 0, 5], [0, 0, 0, 1]])


def ingest_all(source: Path, card: DatasetCard | None = None) -> tuple[IngestReport, list[Volume]]:
    data, card = source.parent / "data", card or nifti_card()
    report = ingest(card, source, data, DEMO_KEY)
    return report, [read_volume(data, series, card) for series in list_series(data, card.id)]


def notices(report: IngestReport) -> str:
    return "\n".join(notice.text for notice in report.notices)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a", "a.NII.GZ", "a.img", "a.hdr", "a.dcm", "a.bz2"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_the_content_and_not_the_suffix_decides(tmp_path: Path, name: str, compressed: bool, version: int) -> None:
    """nipy/nibabel #966, #898, #1128."""
    content = nifti_bytes(ramp(), version=version)
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    volume = read_path(tmp_path / name)
    np.testing.assert_array_equal(np.sort(volume.voxels, axis=None), np.sort(ramp(), axis=None))


@pytest.mark.parametrize("names", [("a.hdr", "a.img"), ("a.hdr.gz", "a.img.gz"), ("A.HDR", "A.IMG"), ("a.hdr", "a.img.gz")])
def test_pairs_are_read_whatever_is_compressed(source: Path, names: tuple[str, str]) -> None:
    """nipy/nibabel #997."""
    nib.save(nib.Nifti1Pair(ramp(), np.diag([1.0, 1, 2, 1])), source / "tmp.hdr")
    for name, made in zip(names, ("tmp.hdr", "tmp.img"), strict=True):
        content = (source / made).read_bytes()
        (source / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        (source / made).unlink()
    report, (volume,) = ingest_all(source)
    single = read_path(write_nifti_file(source.parent / "single.nii", ramp(), np.diag([1.0, 1, 2, 1])))
    np.testing.assert_array_equal(volume.voxels, single.voxels)
    assert not report.quarantined


def test_a_header_without_its_voxels_is_refused(source: Path) -> None:
    nib.save(nib.Nifti1Pair(ramp(), np.eye(4)), source / "sub-01.hdr")
    (source / "sub-01.img").unlink()
    with pytest.raises(BadInput, match=r"without its \.img file"):
        read_path(source / "sub-01.hdr")


def test_an_upload_must_not_refer_to_another_file(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(ramp(), np.eye(4)), tmp_path / "a.hdr")
    with pytest.raises(BadInput, match="in another file"):
        nifti.FORMAT.count_voxels(tmp_path / "a.hdr", 10**9)
    assert nifti.FORMAT.count_voxels(write_nifti_file(tmp_path / "b.nii.gz", ramp()), 10**9) == ramp().size


def test_analyze_is_refused_by_name_with_its_voxels(source: Path) -> None:
    write_nifti_file(source / "sub-01_T1w.nii", ramp())
    nib.save(nib.AnalyzeImage(ramp(seed=9), np.eye(4)), source / "sub-09_T1w.hdr")
    report, _ = ingest_all(source)
    assert [(entry.kind, entry.reason.split(",")[0]) for entry in report.quarantined] == [("unsupported", "Analyze 7.5")]


@given(content=st.binary(max_size=600))
@settings(max_examples=200)
def test_arbitrary_bytes_are_no_analyze_header(content: bytes) -> None:
    assert not is_analyze(content)


def test_colors_and_vectors_are_refused_as_such(source: Path) -> None:
    """nipy/nibabel #979, icometrix/dicom2nifti #5."""
    write_nifti_file(source / "sub-01_T1w.nii.gz", ramp())
    for number, names in enumerate(("RGB", "RGBA"), 2):
        colors = np.zeros((24, 28, 16), dtype=[(name, "u1") for name in names])
        colors["R"] = ramp() % 200
        nib.save(nib.Nifti1Image(colors, np.eye(4)), source / f"sub-0{number}_T1w.nii.gz")
    vectors = np.stack([ramp(seed=seed) for seed in (1, 2, 3)], -1)
    for number, shown in ((4, vectors[:, :, :, None]), (5, vectors)):
        image = nib.Nifti1Image(shown.astype(np.float32), np.eye(4))
        image.header.set_intent("vector")
        nib.save(image, source / f"sub-0{number}_T1w.nii.gz")
    report, volumes = ingest_all(source)
    assert len(volumes) == 1
    assert [(entry.kind, entry.reason) for entry in report.quarantined] == [
        ("unsupported", "a color image"),
        ("unsupported", "a color image"),
        ("unsupported", "vectors: 3 values for each voxel along the fifth axis"),
        ("not magnitude", "vectors, matrices or a surface by its intent code"),
    ]


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
def test_complex_values_are_their_magnitude(source: Path, kind: Any) -> None:
    """nipy/nibabel #975, #933; rordenlab/dcm2niix #189."""
    phase = np.exp(2j * np.pi * np.arange(24) / 8)[:, None, None]
    path = write_nifti_file(source / "sub-01_T1w.nii.gz", (ramp() * phase).astype(kind))
    expected = np.abs(np.asanyarray(nib.load(path).dataobj))
    report, (volume,) = ingest_all(source)
    np.testing.assert_allclose(np.sort(volume.voxels, axis=None), np.sort(expected, axis=None), rtol=1e-6)
    assert "complex values: their magnitude is used" in notices(report)
    np.testing.assert_array_equal(read_path(path).voxels, volume.voxels)


@pytest.mark.parametrize(("scale", "unit"), [(1000.0, "micron"), (0.001, "meter"), (1.0, "mm"), (1.0, "unknown")])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_lengths_are_converted_to_millimeters_as_itk_does(source: Path, scale: float, unit: str, form: str) -> None:
    """InsightSoftwareConsortium/ITK #4595, nipreps/fmriprep #786, nipy/nibabel #567."""
    affine = np.diag([0.9, 1.1, 1.5, 1.0])
    affine[:3, 3] = [-20, 30, 5]
    affine[:3] *= scale
    image = nib.Nifti1Image(ramp(), None)
    image.header.set_xyzt_units(unit, "sec")
    image.header.set_sform(affine, code=1 if form == "sform" else 0)
    image.header.set_qform(affine, code=0 if form == "sform" else 1)
    (source / "sub-01_T1w.nii").write_bytes(image.to_bytes())
    report, (volume,) = ingest_all(source)
    loaded = nifti.load(source / "sub-01_T1w.nii")
    if unit != "unknown":
        itk = SimpleITK.ReadImage(str(source / "sub-01_T1w.nii"))
        assert np.linalg.norm(loaded.affine[:3, :3], axis=0) == pytest.approx(itk.GetSpacing(), rel=1e-5)
        assert loaded.affine[:3, 3] == pytest.approx(np.array(itk.GetOrigin()) * [-1, -1, 1], rel=1e-5)
    assert sorted(volume.spacing_mm) == pytest.approx([0.9, 1.1, 1.5], rel=1e-5)
    told = {"micron": "micrometers, converted", "meter": "meters, converted", "mm": "", "unknown": "millimeters are assumed"}
    assert (told[unit] in notices(report)) and (unit != "mm" or not report.notices)


@pytest.mark.parametrize("side", [900.0, 0.0015])
def test_lengths_of_another_unit_than_stated_are_refused_with_the_size(tmp_path: Path, side: float) -> None:
    path = write_nifti_file(tmp_path / "a.nii", ramp(), np.diag([side, side, side, 1]))
    with pytest.raises(BadInput, match="implausible size"):
        read_path(path)


def test_a_time_step_in_milliseconds_is_stored_in_seconds(source: Path) -> None:
    image = nib.Nifti1Image(np.stack([ramp(), ramp(seed=1)], -1), np.eye(4))
    image.header.set_zooms((1, 1, 1, 2000))
    image.header.set_xyzt_units("mm", "msec")
    nib.save(image, source / "sub-01_T1w.nii")
    ingest_all(source)
    (stored,) = (source.parent / "data").rglob("*.nii")
    assert nib.load(stored).header.get_zooms()[3] == 2.0 and nib.load(stored).header.get_xyzt_units() == ("mm", "sec")


def _with_forms(
    path: Path, *, sform: NDArray[np.float64] | None, qform: NDArray[np.float64] | None, seed: int = 0, **fields: Any
) -> None:
    """Write an image whose forms have code 1 where they are given; ``fields`` then override the header."""
    image = nib.Nifti1Image(ramp(seed=seed), None)
    image.header.set_qform(np.eye(4) if qform is None else qform, code=int(qform is not None))
    image.header.set_sform(np.zeros((4, 4)) if sform is None else sform, code=int(sform is not None))
    for name, value in fields.items():
        image.header[name] = value
    path.write_bytes(image.to_bytes())


FLIPPED = np.diag([-1.0, -1.0, 1.5, 1.0])
SHEARED = np.array([[1, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
FORMS: dict[str, tuple[dict[str, Any], NDArray[np.float64], str]] = {
    "an sform of zeros": ({"sform": np.zeros((4, 4)), "qform": TURNED}, TURNED, "an sform without volume: the qform is used"),
    "an sform of rank 2": ({"sform": np.diag([1.0, 1, 0, 1]), "qform": TURNED}, TURNED, "an sform without volume"),
    "an sform of NaN": ({"sform": np.full((4, 4), np.nan), "qform": TURNED}, TURNED, "an sform without volume"),
    "a qform alone": ({"sform": None, "qform": TURNED}, TURNED, ""),
    "an sform alone": ({"sform": TURNED, "qform": None, "pixdim": [1, 1, 1, 1.5, 0, 0, 0, 0]}, TURNED, ""),
    "two forms that agree": ({"sform": TURNED, "qform": TURNED}, TURNED, ""),
    "two forms that disagree": ({"sform": FLIPPED, "qform": TURNED}, FLIPPED, "sform and qform disagree: the sform is used"),
    "other voxel sizes": ({"sform": FLIPPED, "qform": None, "pixdim": [1, 1, 1, 3, 0, 0, 0, 0]}, FLIPPED, "sform and voxel size"),
    "a sheared sform": ({"sform": SHEARED, "qform": None}, SHEARED, "not at right angles"),
    "a qform without sizes": ({"sform": TURNED, "qform": np.eye(4), "pixdim": [1, 0, 0, 0, 0, 0, 0, 0]}, TURNED, ""),
}


@pytest.mark.parametrize("case", FORMS)
def test_the_sform_is_used_if_it_is_a_position_else_the_qform(source: Path, case: str) -> None:
    """pennlinc/qsiprep #125, nipy/nibabel #182, bids-standard/legacy-validator #292, nilearn #3168."""
    forms, expected, told = FORMS[case]
    _with_forms(source / "sub-01_T1w.nii", **forms)
    report, _ = ingest_all(source)
    np.testing.assert_allclose(nifti.load(source / "sub-01_T1w.nii").affine, expected, atol=1e-5)
    texts = [notice.text for notice in report.notices if "unit of length" not in notice.text]
    assert (told in "\n".join(texts)) and bool(texts) == bool(told)


@pytest.mark.parametrize(
    ("forms", "reason"),
    [
        ({"sform": None, "qform": None}, "no orientation: sform_code and qform_code are 0"),
        ({"sform": None, "qform": TURNED, "pixdim": [1, 0, 1, 1, 0, 0, 0, 0]}, r"voxel size \(pixdim\) of zero or less"),
        ({"sform": None, "qform": TURNED, "pixdim": [1, -1, 1, 1, 0, 0, 0, 0]}, r"voxel size \(pixdim\) of zero or less"),
        ({"sform": np.zeros((4, 4)), "qform": None}, "no position"),
        ({"sform": np.array([[1, 0.9, 0, 0], [0, 0.3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "qform": None}, "a sheared image"),
    ],
)
def test_a_position_that_is_unknown_is_refused_with_its_cause(tmp_path: Path, forms: dict[str, Any], reason: str) -> None:
    _with_forms(tmp_path / "a.nii", **forms)
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "a.nii")


def test_the_card_can_state_the_orientation_of_files_that_do_not(source: Path) -> None:
    """nibabel's convention for such files is LAS, with the center at the origin."""
    _with_forms(source / "sub-01_T1w.nii", sform=None, qform=None, pixdim=[1, 1, 1, 2, 0, 0, 0, 0])
    write_nifti_file(source / "sub-02_T1w.nii", ramp(seed=2))
    report, volumes = ingest_all(source)
    assert len(volumes) == 1 and [entry.kind for entry in report.quarantined] == ["geometry"]
    assert "layout.orientation" in report.quarantined[0].remedy
    report, volumes = ingest_all(source, nifti_card(orientation="LAS"))
    assert len(volumes) == 2 and not report.quarantined and "that of layout.orientation is used" in notices(report)
    expected = nib.load(source / "sub-01_T1w.nii").affine
    np.testing.assert_allclose(nifti.load(source / "sub-01_T1w.nii", "LAS").affine, expected)


angles = st.floats(-np.pi, np.pi)


@given(
    turn=st.tuples(angles, angles, angles),
    sizes=st.tuples(*[st.floats(0.1, 8.0)] * 3),
    offset=st.tuples(*[st.floats(-200, 200)] * 3),
    flip=st.booleans(),
    code=st.sampled_from(["sform", "qform"]),
    version=st.sampled_from([1, 2]),
    order=st.sampled_from("<>"),
)
@settings(max_examples=100)
def test_any_position_is_that_of_nibabel(
    turn: Any, sizes: Any, offset: Any, flip: bool, code: str, version: int, order: str
) -> None:
    affine = np.eye(4)
    affine[:3, :3] = nib.eulerangles.euler2mat(*turn) * sizes * [1, 1, -1 if flip else 1]
    affine[:3, 3] = offset
    image_class, header_class = [(nib.Nifti1Image, nib.Nifti1Header), (nib.Nifti2Image, nib.Nifti2Header)][version - 1]
    image = image_class(np.zeros((3, 4, 5), np.int16), None, header=header_class(endianness=order))
    image.header.set_sform(affine, code=int(code == "sform"))
    image.header.set_qform(affine, code=int(code == "qform"))
    content = image.to_bytes()
    np.testing.assert_allclose(geometry(parse_header(content)).affine, image_class.from_bytes(content).affine, atol=1e-4)


@pytest.mark.parametrize(
    ("bval", "first"), [("0 1000 1000", 1), ("1000 0 0", 0), ("0 0 5 700", 0), ("0 0 0", 0), ("0 a 9", 0), (None, 0)]
)
def test_of_diffusion_the_first_weighted_image_is_used(source: Path, bval: str | None, first: int) -> None:
    """An image with b = 0 is T2-weighted and no DWI; without b-values of its own, the first is used, and told."""
    images = np.stack([ramp(seed=seed) for seed in (1, 2, 3)], -1)
    write_nifti_file(source / "sub-01_dwi.nii.gz", images)
    if bval is not None:
        (source / "sub-01_dwi.bval").write_text(bval)
    report, (volume,) = ingest_all(source, nifti_card(sequences={"dwi": "DWI"}))
    assert volume.acquisition.sequence == "DWI"
    np.testing.assert_array_equal(np.sort(volume.voxels, axis=None), np.sort(images[..., first], axis=None))
    assert "several images along the fourth axis" in notices(report) and not report.quarantined


@pytest.mark.parametrize(
    ("table", "values", "first", "said"),
    [
        ("dwi.bval", "0 1000 1000", 1, "the first image with a b-value above 50 s/mm2 is used"),
        ("sub-01/dwi.bval", "0 0 700", 2, "the first image with a b-value above 50 s/mm2 is used"),
        ("sub-02_dwi.bval", "0 0 700", 0, "the first image is used"),
        ("dwi.bval", "0 1000", 0, "the table of b-values has 2 for 3 images"),
        ("dwi.bval", "b 0 1000", 0, "something else than numbers"),
    ],
)
def test_a_table_of_b_values_is_inherited_as_a_sidecar_is(source: Path, table: str, values: str, first: int, said: str) -> None:
    """BIDS: one table in an upper folder may hold for all subjects; the nearest one counts."""
    images = np.stack([ramp(seed=seed) for seed in (1, 2, 3)], -1)
    write_nifti_file(source / "sub-01" / "dwi" / "sub-01_dwi.nii.gz", images)
    (source / table).write_text(values)
    report, (volume,) = ingest_all(source, nifti_card(sequences={"dwi": "DWI"}))
    np.testing.assert_array_equal(np.sort(volume.voxels, axis=None), np.sort(images[..., first], axis=None))
    assert said in notices(report)


def test_a_table_of_b_values_that_comes_later_changes_the_image(source: Path) -> None:
    """The image is ingested again when its table of b-values changes, even if its own file does not."""
    images = np.stack([ramp(seed=seed) for seed in (1, 2, 3)], -1)
    write_nifti_file(source / "sub-01_dwi.nii.gz", images)
    for values, first in ((None, 0), ("0 1000 0", 1), ("0 0 1000", 2)):
        if values:
            (source / "sub-01_dwi.bval").write_text(values)
        _, (volume,) = ingest_all(source, nifti_card(sequences={"dwi": "DWI"}))
        np.testing.assert_array_equal(np.sort(volume.voxels, axis=None), np.sort(images[..., first], axis=None))
