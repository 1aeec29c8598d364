"""People whose Patient ID was removed stay apart, and the user is told how."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from components.ingestion import ingest, list_series, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.dicom.patients import is_placeholder
from components.ingestion.volume import IngestReport
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, voxels, write_stack

PLAIN = make_card(formats=("DICOM",))
BY_PATH = make_card(formats=("DICOM",), layout={"patient": "(case[0-9]+)/"})


@pytest.mark.parametrize("patient", ["", " ", "0", "000000", "XXX", "Anonymous", "ANON^", "de-identified", "n/a", "None"])
def test_words_for_everybody_name_nobody(patient: str) -> None:
    assert is_placeholder(patient)


@pytest.mark.parametrize("patient", ["P1", "sub-01", "1", "4MR1", "Anonymous1", "X0Y", "TCGA-02-0003"])
def test_ids_are_names(patient: str) -> None:
    assert not is_placeholder(patient)


def _write_people(source: Path, patient: str | None, studies: int = 1) -> None:
    """Write two people with the same Patient ID and a number of studies, one series in each."""
    for person in (1, 2):
        for study in range(studies):
            name = f"p{person}-{study}"
            write_stack(source / f"case{person}", name, voxels(3, seed=10 * person + study), PatientID=patient)


def _ingest(folder: Path, card: object = PLAIN) -> tuple[IngestReport, list[str]]:
    report = ingest(card, folder / "source", folder / "data", DEMO_KEY)  # type: ignore[arg-type]
    return report, [f"{item.count}: {item.text}" for item in report.notices]


@pytest.mark.parametrize("patient", ["", None, "ANONYMOUS", "the same"])
def test_the_expression_of_the_card_tells_people_apart(tmp_path: Path, patient: str | None) -> None:
    _write_people(tmp_path / "source", patient, studies=2)
    report, notices = _ingest(tmp_path, BY_PATH)
    assert (report.patients, report.series) == (2, 4)
    assert notices == ["12: no Patient ID, or one for everybody: patients are told apart by the card's layout.patient"]


@pytest.mark.parametrize("patient", ["", None, "ANONYMOUS"])
def test_without_an_expression_each_study_is_a_patient(tmp_path: Path, patient: str | None) -> None:
    _write_people(tmp_path / "source", patient, studies=2)
    report, notices = _ingest(tmp_path)
    assert report.patients == 4
    assert notices == ["12: no Patient ID: each study counts as a patient; name the patients by layout.patient in the card"]


def test_one_id_in_several_studies_is_one_patient_and_told(tmp_path: Path) -> None:
    _write_people(tmp_path / "source", "the same")
    report, notices = _ingest(tmp_path)
    assert report.patients == 1
    assert notices == ["6: one Patient ID in 2 studies: all count as one patient, so that no split can be made; see layout.patient"]


def test_ids_of_their_own_are_used_whatever_the_card_says(tmp_path: Path) -> None:
    _write_people(tmp_path / "source", "P1")
    write_stack(tmp_path / "source" / "case1", "other", voxels(3, seed=99), PatientID="P2")
    report, notices = _ingest(tmp_path, BY_PATH)
    assert report.patients == 2 and not notices


def test_written_headers_carry_the_pseudonym_of_the_folder(tmp_path: Path) -> None:
    _write_people(tmp_path / "source", "")
    _ingest(tmp_path)
    for series in list_series(tmp_path / "data", PLAIN.id):
        for file in series.files:
            assert pydicom.dcmread(tmp_path / "data" / file.path).PatientID == series.patient_id


def test_a_segmentation_without_a_patient_labels_the_image_in_its_frame_of_reference(tmp_path: Path) -> None:
    card = make_card(formats=("DICOM",), tasks=("segmentation",), label_map={1: "Lesion"})
    fields = dict.fromkeys(("PatientBirthDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"), "")
    paths = write_stack(tmp_path / "source", "s", voxels(4), PatientID="", **fields)
    mask = np.zeros((4, 28, 24), np.uint8)
    mask[1:3, 5:9, 6:10] = 1
    description = highdicom.seg.SegmentDescription(1, "Lesion", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
    images = [pydicom.dcmread(path) for path in paths]
    segmentation = highdicom.seg.Segmentation(images, mask, "BINARY", [description], "1.2.3.4", 9, "1.2.3.5", 1, "m", "m", "1", "1")
    segmentation.save_as(tmp_path / "source" / "seg.dcm")
    edit(tmp_path / "source" / "seg.dcm", lambda item: setattr(item, "StudyInstanceUID", "1.2.3.6"))
    report, _ = _ingest(tmp_path, card)
    assert not report.quarantined and report.patients == 1
    (series,) = list_series(tmp_path / "data", card.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, card).labels, mask)


def test_patients_with_the_same_uids_stay_two_patients(tmp_path: Path) -> None:
    for number, patient in enumerate(("A", "B")):
        write_stack(tmp_path / "source" / patient, "s", voxels(3, seed=number), PatientID=patient)
    report, _ = _ingest(tmp_path)
    assert (report.patients, report.series, report.quarantined) == (2, 2, ())
    sums = {read_volume(tmp_path / "data", series, PLAIN).voxels.sum() for series in list_series(tmp_path / "data", PLAIN.id)}
    assert sums == {voxels(3, seed=number).sum() for number in (0, 1)}
