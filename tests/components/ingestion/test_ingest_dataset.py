"""Ingestion of datasets: de-identified, complete, incremental."""

import json
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from components.catalog import load_card
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers.datasets import SAMPLES

IDENTIFYING = (
    b"Doe",
    b"DCM-00",
    b"NIF-00",
    b"KSP-00",
    b"19700203",
    b"1970-02-03",
    b"Referrer",
    b"Sample Hospital",
    b"ACC0000",
    b"45123",
    b"20240506",
    b"2024-05-06",
    b"070809",
)
"""Identifying values in the generated sources: names, numbers, birth and study dates, institution, serial number."""


def test_the_sources_contain_identifying_values(sources: Path) -> None:
    everything = b"".join(path.read_bytes() for path in sources.rglob("*") if path.is_file() and "synthetic" in str(path))
    assert all(text in everything for text in IDENTIFYING)


def test_no_byte_and_no_name_identifies_a_patient(data: Path) -> None:
    for path in data.rglob("*"):
        assert not any(text.decode() in path.name for text in IDENTIFYING)
        if path.is_file():
            content = path.read_bytes()
            assert not [text for text in IDENTIFYING if text in content], path.name


def test_private_elements_are_removed(data: Path) -> None:
    for path in sorted(data.rglob("*.dcm"))[::10]:
        assert not [element for element in pydicom.dcmread(path).iterall() if element.tag.is_private]


def test_intervals_between_dates_are_preserved(data: Path) -> None:
    study = {pydicom.dcmread(path).StudyDate for path in data.rglob("*.dcm") if "synthetic" in str(path)}
    assert len(study) == 2 and all(date < "20240506" for date in study)  # one for each patient


def test_a_truncated_file_and_another_modality_are_quarantined(data: Path) -> None:
    reasons = {(entry.kind, entry.reason) for entry in read_quarantine(data, "pydicom-samples")}
    assert ("unreadable", "fewer pixels than the header says") in reasons
    assert ("not MR", "modality CT, not MR") in reasons


def test_every_series_can_be_read(data: Path) -> None:
    for sample in SAMPLES:
        card = load_card(sample)
        listed = list_series(data, sample)
        assert listed
        for series in listed:
            volume = read_volume(data, series, card)
            assert volume.voxels.ndim == 3 and volume.voxels.std() > 0
            assert volume.acquisition.plane == "axial"
            assert volume.labels is None or set(volume.labels.flat) <= {0, *card.label_map}


def test_nothing_is_written_for_an_unchanged_source(sources: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file() and path.suffix != ".json"}
    for sample in SAMPLES:
        report = ingest(load_card(sample), sources / sample, data, DEMO_KEY)
        assert report.files_new == 0 and report.files_removed == 0 and report.files_reused > 0
    assert before == {path: path.stat().st_mtime_ns for path in data.rglob("*") if path.is_file() and path.suffix != ".json"}


def test_only_changed_files_are_written_and_vanished_ones_are_removed(sources: Path, tmp_path: Path) -> None:
    card, source, data = load_card("synthetic-brain-nifti"), tmp_path / "source", tmp_path / "data"
    shutil.copytree(sources / card.id, source)
    first = ingest(card, source, data, DEMO_KEY)
    assert first.patients == 2
    image = source / "sub-0000" / "anat" / "sub-0000_T1w.nii"
    content = bytearray(image.read_bytes())
    content[-2] ^= 1
    image.write_bytes(content)
    assert ingest(card, source, data, DEMO_KEY).files_new == 1
    shutil.rmtree(source / "sub-0001")
    report = ingest(card, source, data, DEMO_KEY)
    assert report.patients == 1 and report.files_new == 0 and report.files_removed == 7
    assert len({series.patient_id for series in list_series(data, card.id)}) == 1


def test_a_broken_file_affects_only_its_own_series(sources: Path, tmp_path: Path) -> None:
    card, source = load_card("synthetic-brain-kspace"), tmp_path / "source"
    shutil.copytree(sources / card.id, source)
    broken = sorted(source.glob("*.h5"))[0]
    broken.write_bytes(broken.read_bytes()[:5000])
    report = ingest(card, source, tmp_path / "data", DEMO_KEY)
    assert report.series == 1 and [entry.path for entry in report.quarantined] == ["file 2 of 4, *.h5"]


def test_another_key_gives_other_pseudonyms(sources: Path, data: Path, tmp_path: Path) -> None:
    card = load_card("synthetic-brain-nifti")
    ingest(card, sources / card.id, tmp_path, b"another key of thirty-two bytes!!")
    patients = {series.patient_id for series in list_series(data, card.id)}
    assert not patients & {series.patient_id for series in list_series(tmp_path, card.id)}


def test_the_published_key_is_rejected_for_real_patients(sources: Path, tmp_path: Path) -> None:
    card = load_card("icbm152-2009").model_copy(update={"public_sample": False})
    with pytest.raises(BadInput, match="public_demo_key"):
        ingest(card, sources / card.id, tmp_path, DEMO_KEY)


def test_a_folder_without_images_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "source")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no readable MR image"):
        ingest(load_card("pydicom-samples"), tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert json.loads((tmp_path / "data" / "pydicom-samples" / "quarantine.json").read_text())[0]["reason"].startswith(
        "modality CT"
    )
