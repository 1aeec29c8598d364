"""3-D boxes from a table of the card cover the lesions, for any order and orientation of the files."""

from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import openpyxl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.catalog import DatasetCard, Layout, load_card
from components.catalog.layout import BoxTable
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.annotations import tables
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.volume import Volume
from tests.helpers import dicom_files

KEY = bytes(range(32))
TITLES = ("Patient ID", "Start Row", "End Row", "Start Column", "End Column", "Start Slice", "End Slice")
TABLE = BoxTable(
    path="boxes.csv",
    key="Patient ID",
    slices=("Start Slice", "End Slice"),
    rows=("Start Row", "End Row"),
    columns=("Start Column", "End Column"),
    label="Tumour",
)
CARD = DatasetCard(
    id="made-up",
    name="Made up",
    rights="none",
    formats=("NIfTI", "NumPy"),
    synthetic=True,
    layout=Layout(patient="([^/.]+)[^/]*$", boxes=(TABLE,)),
)
BRIGHT = 60_000


def _table(path: Path, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([TITLES, *rows])


def _boxed(volume: Volume) -> NDArray[np.bool_]:
    covered = np.zeros(volume.voxels.shape, dtype=bool)
    for box in volume.boxes:
        assert box.label == "tumour" and not covered[box.slice_index, box.row0 : box.row1, box.col0 : box.col1].any()
        covered[box.slice_index, box.row0 : box.row1, box.col0 : box.col1] = True
    return covered


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 2, 4, 1, 3, 5]])
@pytest.mark.parametrize("orientation", [dicom_files.AXIAL, dicom_files.SAGITTAL])
def test_the_table_of_duke_is_read_by_its_card(tmp_path: Path, order: list[int], orientation: tuple[float, ...]) -> None:
    """Slices count from one in the order of the instance numbers, which may lead up or down; only dynamic series are boxed."""
    card, source = load_card("duke-breast-cancer-mri"), tmp_path / "source"
    study = source / "Duke-Breast-Cancer-MRI" / "Breast_MRI_001" / "01-01-1990-NA-MRI BREAST"
    for number, name in enumerate(("ax dyn 1st pass", "ax t1", "Ax Vibrant MultiPhase")):
        voxels = dicom_files.random_pixels(6, 12, 14, seed=number)
        for slice_number in (2, 3, 4):  # the third to the fifth file
            voxels[order[slice_number - 1], 4:8, 5:11] = BRIGHT
        dicom_files.write_series(
            study / f"{number}.000000-{name}-1",
            name,
            voxels,
            orientation,
            order=order,
            PatientID="Breast_MRI_001",
            SeriesInstanceUID=f"1.2.{number}",
        )
    _table(source / "Annotation_Boxes.csv", ("Breast_MRI_002", 1, 2, 1, 2, 1, 2), ("Breast_MRI_001", 5, 8, 6, 11, 2, 4))
    ingest(card, source, tmp_path / "data", KEY)
    found = [read_volume(tmp_path / "data", one, card) for one in list_series(tmp_path / "data", card.id)]
    assert sorted(bool(one.boxes) for one in found) == [False, True, True]
    for volume in found:
        if volume.boxes:
            np.testing.assert_array_equal(_boxed(volume), volume.voxels == BRIGHT)
            assert volume.diagnosis == {"tumour": True}
    assert not read_quarantine(tmp_path / "data", card.id)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.permutations([0, 1, 2]),
    st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    st.tuples(*[st.floats(0.5, 6)] * 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1]),
)
def test_boxes_follow_the_orientation_of_the_image(
    tmp_path: Path, axes: list[int], signs: tuple[float, ...], sides: tuple[float, ...], seed: int, first: int
) -> None:
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 9, 3)
    ends = [sorted(rng.integers(0, side, 2).tolist()) for side in shape]  # columns, rows, slices: both inside
    values = np.arange(int(np.prod(shape)), dtype=np.uint16).reshape(shape)
    values[tuple(slice(low, high + 1) for low, high in ends)] = BRIGHT
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) * sides)[axes]
    affine[:3, 3] = rng.uniform(-90, 90, 3)
    source = tmp_path / "source"
    source.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), source / "sub-1.nii")
    columns, rows, slices = ([end + first for end in pair] for pair in ends)
    _table(source / "boxes.csv", ("sub-1", *rows, *columns, *slices))
    card = CARD.model_copy(
        update={"layout": CARD.layout.model_copy(update={"boxes": (TABLE.model_copy(update={"first": first}),)})}
    )
    ingest(card, source, tmp_path / "data", DEMO_KEY)
    (volume,) = [read_volume(tmp_path / "data", one, card) for one in list_series(tmp_path / "data", card.id)]
    np.testing.assert_array_equal(_boxed(volume), volume.voxels == BRIGHT)


def test_several_boxes_and_arrays_without_a_header(tmp_path: Path) -> None:
    values = dicom_files.random_pixels(5, 8, 9)
    values[1:3, 2:4, 5:7] = values[4, 6:8, 0:2] = BRIGHT
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "exam7.npy", values)
    _table(tmp_path / "source" / "boxes.csv", ("exam7", 2, 3, 5, 6, 1, 2), ("exam7", "6", "7.0", 0, 1, 4, 4))
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (volume,) = [read_volume(tmp_path / "data", one, CARD) for one in list_series(tmp_path / "data", CARD.id)]
    np.testing.assert_array_equal(_boxed(volume), volume.voxels == BRIGHT)
    assert b"exam7" not in b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*.json"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("exam7", 2, 8, 5, 6, 1, 2), "a box extends beyond the image"),
        (("exam7", 2, 3, 5, 6, 1, 5), "a box extends beyond the image"),
        (("exam7", 2, 3, -1, 6, 1, 2), "a box extends beyond the image"),
        (("exam7", 3, 2, 5, 6, 1, 2), "a box extends beyond the image"),
        (("exam7", "Zwetschge", 2, 5, 6, 1, 2), "the position of a box is not a number"),
    ],
)
def test_an_invalid_box_is_reported_and_the_image_is_kept(tmp_path: Path, row: tuple[object, ...], reason: str) -> None:
    (tmp_path / "source").mkdir()
    np.save(tmp_path / "source" / "exam7.npy", dicom_files.random_pixels(5, 8, 9))
    _table(tmp_path / "source" / "boxes.csv", row)
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (volume,) = [read_volume(tmp_path / "data", one, CARD) for one in list_series(tmp_path / "data", CARD.id)]
    assert volume.boxes == () and volume.diagnosis == {}
    assert [(one.reason, bool(one.remedy)) for one in read_quarantine(tmp_path / "data", CARD.id)] == [(reason, True)]


def test_a_workbook_is_read_like_the_same_table_in_csv(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (TITLES, ("exam7", 2, 3, 5, None, 1.0, 2)):
        book.active.append(row)
    book.save(tmp_path / "boxes.xlsx")
    titles, row = tables.read_rows(tmp_path / "boxes.xlsx")
    assert titles == TITLES and row[:4] == ("exam7", "2", "3", "5") and row[4] == "" and float(row[5]) == 1


def test_a_malicious_workbook_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "boxes.xlsx"
    with zipfile.ZipFile(path, "w") as parts:
        parts.writestr("xl/workbook.xml", bytes(2000))
    monkeypatch.setattr(tables, "MAX_DECOMPRESSED_BYTES", 1000)
    with pytest.raises(BadInput, match="too large"):
        tables.read_rows(path)
