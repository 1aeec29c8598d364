"""UIDs that an anonymizer gave to objects of two visits or patients: images and labels of visits never mix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.study_reader import read_study
from components.ingestion.volume import IngestReport, Volume
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, voxels, write_stack

CARD = make_card(formats=("DICOM",))
SHARED = "one Series Instance UID in several studies: the images of each study are a series of their own"


def _ingest(folder: Path, card: Any = CARD) -> tuple[IngestReport, list[Volume]]:
    report = ingest(card, folder / "source", folder / "data", DEMO_KEY)
    return report, [read_volume(folder / "data", series, card) for series in list_series(folder / "data", card.id)]


def _write_visits(source: Path, shifts_mm: tuple[float, float] = (0, 0), **attributes: Any) -> list[list[Path]]:
    """Write the series of two studies of one patient under one Series Instance UID, all other UIDs of their own."""
    written = []
    for number, shift in enumerate(shifts_mm):
        paths = write_stack(
            source / f"visit{number}", f"v{number}", voxels(4, seed=number), SeriesInstanceUID="1.2.7", **attributes
        )
        for path in paths:
            edit(path, lambda item, shift=shift: _move(item, shift))  # type: ignore[misc]
        written.append(paths)
    return written


def _move(item: pydicom.Dataset, shift: float) -> None:
    x, y, z = item.ImagePositionPatient
    item.ImagePositionPatient = [x, y, z + shift]


@pytest.mark.parametrize("shifts_mm", [(0, 0), (0, 16), (0, 2), (0, 0.004)], ids=["repeat", "behind", "between", "rounding"])
def test_one_series_uid_in_two_studies_is_a_series_of_each(tmp_path: Path, shifts_mm: tuple[float, float]) -> None:
    _write_visits(tmp_path / "source", shifts_mm)
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined and report.patients == 1
    assert (8, SHARED) in [(item.count, item.text) for item in report.notices]
    expected = {voxels(4, seed=number).tobytes() for number in (0, 1)}
    assert {volume.voxels.astype(np.uint16).tobytes() for volume in volumes} == expected
    assert len({series.visit for series in list_series(tmp_path / "data", CARD.id)}) == 2
    again = ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert (again.files_new, again.files_removed) == (0, 0)


def test_images_of_two_visits_with_the_same_uids_throughout_are_no_copies(tmp_path: Path) -> None:
    """Anonymizers number series and images of each study from 1."""
    for paths in _write_visits(tmp_path / "source"):
        for place, path in enumerate(paths):
            edit(path, lambda item, place=place: setattr(item, "SOPInstanceUID", f"1.2.7.{place}"))  # type: ignore[misc]
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined and len(volumes) == 2


def test_enhanced_images_of_two_visits_with_one_uid_are_both_ingested(tmp_path: Path) -> None:
    for number in (0, 1):
        frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(voxels(4, seed=number))]
        path = tmp_path / "source" / f"{number}.dcm"
        dicom_files.write_enhanced(path, frames, StudyInstanceUID=f"1.2.8.{number}", SOPInstanceUID="1.2.9")
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined and len(volumes) == 2


def test_a_study_uid_that_some_slices_lack_splits_nothing(tmp_path: Path) -> None:
    paths = write_stack(tmp_path / "source", "s", voxels(5))
    edit(paths[1], lambda item: setattr(item, "StudyInstanceUID", ""))
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined and [len(volume.voxels) for volume in volumes] == [5]


@pytest.mark.parametrize("heights_mm", [(0, 0), (0, 7), (0, 0, 0), (0, 0, 7), (0, 3, 11), (0, 3, 11, 24)])
def test_single_slices_of_several_visits_are_volumes_of_their_own(tmp_path: Path, heights_mm: tuple[float, ...]) -> None:
    """An anonymizer with one fixed UID for all series."""
    for number, height in enumerate(heights_mm):
        (path,) = write_stack(tmp_path / "source", f"v{number}", voxels(1, seed=number), SeriesInstanceUID="1.2.7")
        edit(path, lambda item, height=height: _move(item, height))  # type: ignore[misc]
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined and [len(volume.voxels) for volume in volumes] == [1] * len(heights_mm)
    assert (len(heights_mm), SHARED) in [(item.count, item.text) for item in report.notices]
    assert len({series.visit for series in list_series(tmp_path / "data", CARD.id)}) == len(heights_mm)


@pytest.mark.parametrize("lost", [None, 2])
def test_a_stack_of_which_each_slice_has_a_study_of_its_own_is_refused(tmp_path: Path, lost: int | None) -> None:
    write_stack(tmp_path / "source", "intact", voxels(3))
    for place, path in enumerate(write_stack(tmp_path / "source", "s", voxels(7, seed=1))):
        edit(path, lambda item, place=place: setattr(item, "StudyInstanceUID", f"1.2.8.{place}"))  # type: ignore[misc]
        if place == lost:
            path.unlink()
    report, volumes = _ingest(tmp_path)
    assert [len(volume.voxels) for volume in volumes] == [3]
    (entry,) = report.quarantined
    assert "images all have different Study Instance UIDs" in entry.reason and "one Study Instance UID" in entry.remedy


def test_a_segmentation_labels_the_images_of_its_own_visit(tmp_path: Path) -> None:
    """Two visits with one frame of reference on one grid: the mask of the second is none of the first."""
    (_, second) = _write_visits(tmp_path / "source", FrameOfReferenceUID="1.2.6")
    fields = dict.fromkeys(("PatientBirthDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"), "")
    images = [pydicom.dcmread(path) for path in second]
    for image in images:
        for keyword, value in fields.items():
            setattr(image, keyword, value)
    mask = np.zeros((4, 28, 24), np.uint8)
    mask[1:3, 5:9, 6:10] = 1
    description = highdicom.seg.SegmentDescription(
        1, "Lesion", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
    )
    segmentation = highdicom.seg.Segmentation(images, mask, "BINARY", [description], "1.2.5", 9, "1.2.5.1", 1, "x", "x", "1", "1")
    segmentation.save_as(tmp_path / "source" / "seg.dcm")
    report, volumes = _ingest(tmp_path, make_card(formats=("DICOM",), tasks=("segmentation",), label_map={1: "Lesion"}))
    assert not report.quarantined
    labeled = [volume for volume in volumes if volume.labels is not None]
    assert len(labeled) == 1 and np.array_equal(labeled[0].voxels, voxels(4, seed=1))


@pytest.mark.parametrize(
    ("keyword", "noun"), [("StudyInstanceUID", "studies"), ("PatientID", "patients")], ids=["two visits", "two patients"]
)
def test_a_prediction_reads_no_two_visits_or_patients_as_one_volume(tmp_path: Path, keyword: str, noun: str) -> None:
    paths = write_stack(tmp_path / "source", "s", voxels(6))
    edit(paths[3:], lambda item: setattr(item, keyword, "1.2.8"))
    with pytest.raises(BadInput, match=f"2 {noun} where one is expected"):
        read_path(tmp_path / "source")
    with pytest.raises(BadInput, match=f"2 {noun} where one is expected"):
        read_study([tmp_path / "source"])
