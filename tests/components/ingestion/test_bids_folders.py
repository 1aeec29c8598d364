"""Folders as BIDS users have them: what is no image is not ingested as one, and what does not fit is told with number."""

from __future__ import annotations

import gzip
import json
import unicodedata
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest

from components.catalog import DatasetCard
from components.errors import BadInput
from components.ingestion import ingest, list_series, read_volume
from components.ingestion.annotations.sidecars import times_in_seconds
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.file_names import belongs_to_layout, not_magnitude_by_name
from components.ingestion.volume import IngestReport, Volume
from tests.helpers.real_world.common import nifti_card, ramp
from tests.helpers.real_world.nifti_files import write_nifti_file

TABLE: dict[str, Any] = {
    "path": "participants.tsv",
    "key": "participant_id",
    "sex": "sex",
    "age": "age",
    "findings": {"group": "ms"},
    "values": {"patient": True, "control": False},
}
PARTICIPANTS = "participant_id\tsex\tage\tgroup\nsub-01\tF\t34\tpatient\nsub-02\tmale\t92\tcontrol\n"


def ingest_all(source: Path, card: DatasetCard) -> tuple[IngestReport, list[Volume]]:
    data = source.parent / "data"
    report = ingest(card, source, data, DEMO_KEY)
    return report, [read_volume(data, series, card) for series in list_series(data, card.id)]


def texts(report: IngestReport) -> list[str]:
    return [notice.text for notice in report.notices if "unit of length" not in notice.text]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with one image of each of two patients."""
    for number in (1, 2):
        write_nifti_file(tmp_path / "source" / f"sub-0{number}" / "anat" / f"sub-0{number}_T1w.nii.gz", ramp(seed=number))
    return tmp_path / "source"


ENCODED = {
    "utf-8": PARTICIPANTS.encode(),
    "a byte order mark": ("\ufeff" + PARTICIPANTS).encode(),
    "utf-16": PARTICIPANTS.encode("utf-16"),
    "utf-16 without a mark": PARTICIPANTS.encode("utf-16-le"),
    "utf-16 big endian": PARTICIPANTS.encode("utf-16-be"),
    "utf-32": PARTICIPANTS.encode("utf-32"),
    "latin-1": (PARTICIPANTS + "sub-03\tF\t1\tTübingen\n").encode("latin-1"),
    "old Mac line ends": PARTICIPANTS.replace("\n", "\r").encode(),
    "Windows line ends": PARTICIPANTS.replace("\n", "\r\n").encode(),
    "commas": PARTICIPANTS.replace("\t", ",").encode(),
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_a_table_is_read_in_any_encoding(source: Path, encoding: str) -> None:
    """bids-validator #179, legacy-validator #878, Loris-MRI #610."""
    (source / "participants.tsv").write_bytes(ENCODED[encoding])
    report, volumes = ingest_all(source, nifti_card(tables=[TABLE]))
    found = sorted((volume.acquisition.sex, volume.acquisition.age_years, volume.diagnosis["ms"]) for volume in volumes)
    assert found == [("F", 34.0, True), ("M", 90.0, False)] and not texts(report) and not report.quarantined


def test_a_table_whose_ids_fit_nobody_is_told_by_their_form(source: Path) -> None:
    """legacy-validator #1901, bids-specification #737. The ids themselves may name patients."""
    (source / "participants.tsv").write_text(PARTICIPANTS.replace("sub-", ""))
    report, volumes = ingest_all(source, nifti_card(tables=[TABLE]))
    (text,) = texts(report)
    assert "2 rows whose keys fit none of the 2" in text and "'99'" in text and "'aaa-99'" in text
    assert all(volume.acquisition.sex is None for volume in volumes)


def test_images_without_a_row_are_counted(source: Path) -> None:
    (source / "participants.tsv").write_text(PARTICIPANTS.partition("sub-02")[0])
    report, _ = ingest_all(source, nifti_card(tables=[TABLE]))
    assert texts(report) == ["a table without a row for 1 of the 2 keys of the images"]


def test_two_columns_of_one_name_are_told(source: Path) -> None:
    """legacy-validator #1530."""
    doubled = PARTICIPANTS.replace("participant_id", "participant_id\tparticipant_id").replace("sub-01", "sub-01\tCQ2")
    (source / "participants.tsv").write_text(doubled.replace("sub-02", "sub-02\tBT4"))
    report, _ = ingest_all(source, nifti_card(tables=[TABLE]))
    assert "two columns 'participant_id'" in texts(report)[0]


def test_images_whose_patient_is_unknown_are_counted(source: Path) -> None:
    report, _ = ingest_all(source, nifti_card(patient="(pat-[0-9]+)"))
    assert report.patients == 1 and [notice.count for notice in report.notices if "does not match" in notice.text] == [2]
    report, _ = ingest_all(source, nifti_card(patient=None))
    assert [notice.count for notice in report.notices if "no layout.patient" in notice.text] == [2]


@pytest.mark.parametrize("field", ["labels", "tables", "boxes", "reviewed", "tissue_maps"])
def test_a_glob_that_matches_nothing_is_told(source: Path, field: str) -> None:
    layout: dict[str, Any] = {"tables": [{**TABLE, "path": "x.tsv"}], "tissue_maps": {1: "x"}}.get(field, ["*_sgm.nii.gz"])  # type: ignore[assignment]
    report, volumes = ingest_all(source, nifti_card(**{field: layout}))
    assert len(volumes) == 2 and any(f"layout.{field} of the card matches none" in text for text in texts(report))


@pytest.mark.parametrize("name", ["sub-0{}_seg.nii.gz", "labelsTr/sub-0{}.nii.gz", "sub-0{}_x.nii.gz", "sub-0{}/masks/a.nii"])
def test_masks_that_the_card_misspells_are_never_images(source: Path, name: str) -> None:
    for number in (1, 2):
        write_nifti_file(source / name.format(number), (ramp(seed=number) > 250 + 10 * number).astype(np.uint8))
    card = nifti_card(labels=["*_sgm.nii.gz"], label_map={1: "lesion"})
    report, volumes = ingest_all(source, card)
    assert len(volumes) == 2 and [entry.kind for entry in report.quarantined] == ["not magnitude"] * 2
    assert all("layout.labels" in entry.remedy for entry in report.quarantined)


def test_a_glob_of_images_that_matches_nothing_ends_the_ingestion_with_its_cause(source: Path) -> None:
    with pytest.raises(BadInput, match=r"layout.images of the card matches none of 2 files: '\*_T1.nii.gz'"):
        ingest_all(source, nifti_card(images=["*_T1.nii.gz"]))


INTENTS = {
    "label": "a label map",
    "z score": "statistics",
    "t test": "statistics",
    "p value": "statistics",
    "estimate": "a derived map",
}


@pytest.mark.parametrize("intent", INTENTS)
def test_the_intent_of_the_header_decides_over_the_name(source: Path, intent: str) -> None:
    image = nib.Nifti1Image((ramp() / 50).astype(np.float32), np.eye(4))
    image.header.set_intent(intent)
    nib.save(image, source / "sub-01_T1w.nii.gz")
    report, volumes = ingest_all(source, nifti_card())
    assert len(volumes) == 2 and [entry.kind for entry in report.quarantined] == ["not magnitude"]
    assert report.quarantined[0].reason.startswith(INTENTS[intent])


NAMES = {
    "sub-01_T1w.nii.gz": "",
    "sub-01_part-mag_bold.nii.gz": "",
    "sub-01_magnitude1.nii.gz": "",
    "sub-01_UNIT1.nii.gz": "",
    "sub-01_space-T1w_desc-preproc_T2w.nii.gz": "",
    "BraTS-GLI-00005-000-t1n.nii.gz": "",
    "IXI002-Guys-0828-T1.nii.gz": "",
    "case_0000.nii.gz": "",
    "sub-01_part-phase_bold.nii.gz": "phase",
    "sub-01_phasediff.nii.gz": "phase",
    "sub-01_phase2.nii.gz": "phase",
    "scan_e2_ph.nii.gz": "phase",
    "sub-01_part-real_GRE.nii": "real part",
    "scan_imaginary.nii": "imaginary part",
    "sub-01_fieldmap.nii.gz": "a derived map",
    "sub-01_T1map.nii.gz": "a derived map",
    "sub-01_TB1map.nii.gz": "a derived map",
    "sub-01_FA.nii.gz": "a derived map",
    "dti_L1.nii.gz": "a derived map",
    "sub-01_dtifit_V3.nii.gz": "a derived map",
    "volunteer_L1.nii.gz": "",
    "sub-01_stat-z_bold.nii.gz": "statistics",
    "sub-01_label-GM_probseg.nii.gz": "a probability map",
    "sub-01_desc-brain_mask.nii.gz": "a mask or label map",
    "BraTS-GLI-00005-000-seg.nii.gz": "a mask or label map",
    "labelsTr/BRATS_001.nii.gz": "a mask or label map",
    "p1/gt/p1.mha": "a mask or label map",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_tell_what_is_no_magnitude_image(name: str) -> None:
    """Suffixes and entities of BIDS 1.10, and names that dcm2niix, nnU-Net and others write."""
    assert not_magnitude_by_name(name) == NAMES[name]


def test_the_card_can_declare_a_map_as_image(source: Path) -> None:
    write_nifti_file(source / "sub-01_T1map.nii.gz", ramp(seed=5))
    write_nifti_file(source / "sub-01_phase.nii.gz", ramp(seed=6))
    report, _ = ingest_all(source, nifti_card())
    assert [entry.kind for entry in report.quarantined] == ["not magnitude"] * 2
    report, volumes = ingest_all(source, nifti_card(sequences={"_T1map": "quantitative map"}))
    assert len(volumes) == 3 and len(report.quarantined) == 1
    report, volumes = ingest_all(source, nifti_card(images=["*_T1w.nii.gz", "*_phase.nii.gz"]))
    assert len(volumes) == 3 and not report.quarantined


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"]}, "phase"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "R_FFE", "R", "FFE"]}, "real part"),
        ({"ComplexImageComponent": "IMAGINARY"}, "imaginary part"),
        ({"ImageType": ["DERIVED", "PRIMARY", "T1 MAP", "ND"]}, "relaxation map"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]}, ""),
        ({"ImageType": "M"}, ""),
    ],
)
def test_the_image_type_of_a_sidecar_tells_the_component(source: Path, fields: dict[str, Any], reason: str) -> None:
    (source / "sub-01" / "anat" / "sub-01_T1w.json").write_text(json.dumps(fields))
    report, volumes = ingest_all(source, nifti_card())
    assert len(volumes) == (1 if reason else 2) and len(report.quarantined) == (1 if reason else 0)
    assert not reason or report.quarantined[0].reason == f"{reason} by its sidecar (Image Type or Units)"


DOCUMENTS = (
    *("README", "README.md", "CHANGES", "LICENSE", "CITATION.cff", "dataset_description.json", "participants.json"),
    *("sub-01/sub-01_scans.tsv", "sub-01/func/sub-01_task-rest_events.tsv", "sub-01/func/sub-01_task-rest_events.json"),
    *("sub-01/dwi/sub-01_dwi.bval", "sub-01/dwi/sub-01_dwi.bvec", "sub-01/dwi/bvals", "Thumbs.db", "code/convert.py"),
    *("derivatives/fmriprep/sub-01.html", "derivatives/fmriprep/sub-01/anat/sub-01_hemi-L_pial.surf.gii"),
    *("stimuli/face.png", "derivatives/x/dataset_description.json", "sub-01/func/sub-01_task-rest_physio.tsv.gz"),
)


def test_documents_of_a_layout_are_counted_and_strays_are_listed(source: Path) -> None:
    for name in (*DOCUMENTS, "__MACOSX/sub-01_T1w.nii.gz.txt", "notes.txt", "sub-01/other.json"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("{}")
    report, _ = ingest_all(source, nifti_card())
    assert report.files_of_layout == len(DOCUMENTS) + 1
    assert [entry.kind for entry in report.quarantined] == ["no image"] * 2


@pytest.mark.parametrize("name", ["sub-01_T1w.nii.gz", "sub-01_T1w.json", "a.csv", "report.pdf", "reader.tsv", "lesions.bval.nii"])
def test_files_with_content_are_no_documents_of_a_layout(name: str) -> None:
    assert not belongs_to_layout(name)


SIDECARS: dict[str, tuple[bytes, tuple[float | None, float | None], str]] = {
    "seconds": (b'{"EchoTime": 0.03, "RepetitionTime": 2.0}', (30.0, 2000.0), ""),
    "milliseconds": (b'{"EchoTime": 30, "RepetitionTime": 2000}', (30.0, 2000.0), "times in milliseconds"),
    "milliseconds of a fast sequence": (b'{"EchoTime": 2.5, "RepetitionTime": 5}', (2.5, 5.0), "times in milliseconds"),
    "only the echo in milliseconds": (b'{"EchoTime": 30, "RepetitionTime": 2.0}', (30.0, 2000.0), "times in milliseconds"),
    "only the repetition in milliseconds": (b'{"EchoTime": 0.03, "RepetitionTime": 2000}', (30.0, 2000.0), "times in milliseconds"),
    "n/a": (b'{"EchoTime": "n/a", "RepetitionTime": "n/a"}', (None, None), ""),
    "a list": (b'{"EchoTime": [0.01, 0.02], "RepetitionTime": 2.0}', (None, 2000.0), ""),
    "no number": (b'{"EchoTime": NaN, "RepetitionTime": Infinity}', (None, None), ""),
    "zero and less": (b'{"EchoTime": 0, "RepetitionTime": -2}', (None, None), ""),
    "latin-1": ('{"EchoTime": 0.03, "RepetitionTime": 2.0, "x": "Tübingen"}'.encode("latin-1"), (30.0, 2000.0), "not UTF-8"),
    "utf-16": ('{"EchoTime": 0.03, "RepetitionTime": 2.0}'.encode("utf-16"), (30.0, 2000.0), ""),
}


@pytest.mark.parametrize("form", SIDECARS)
def test_times_of_a_sidecar_are_in_the_unit_that_is_plausible(source: Path, form: str) -> None:
    """bids-specification #2170, tedana #1286; BIDS: times in seconds."""
    content, expected, told = SIDECARS[form]
    (source / "sub-02" / "anat" / "sub-02_T1w.nii.gz").unlink()
    (source / "sub-01" / "anat" / "sub-01_T1w.json").write_bytes(content)
    report, (volume,) = ingest_all(source, nifti_card())
    acquisition = volume.acquisition
    assert (acquisition.echo_time_ms, acquisition.repetition_time_ms) == expected and not report.quarantined
    assert (told in "\n".join(texts(report))) and bool(told) == bool(texts(report))


def test_a_damaged_sidecar_is_listed_and_its_image_ingested(source: Path) -> None:
    (source / "sub-01" / "anat" / "sub-01_T1w.json").write_text('{"EchoTime": 0.03,}')
    report, volumes = ingest_all(source, nifti_card())
    assert len(volumes) == 2 and [entry.reason for entry in report.quarantined] == ["the sidecar is not valid JSON"]


@pytest.mark.parametrize("tesla", [30000, 0, -3, "n/a", 127.7])
def test_an_impossible_field_strength_is_unknown(source: Path, tesla: Any) -> None:
    (source / "sub-01" / "anat" / "sub-01_T1w.json").write_text(json.dumps({"MagneticFieldStrength": tesla}))
    _, volumes = ingest_all(source, nifti_card())
    assert all(volume.acquisition.field_strength_t is None for volume in volumes)


def test_times_in_seconds_are_left_alone() -> None:
    assert times_in_seconds({"EchoTime": 0.9, "RepetitionTime": 29.0}) == {"EchoTime": 0.9, "RepetitionTime": 29.0}


OTHER_FORMATS = {
    "images.zip": (b"PK\3\4" + b"\0" * 400, "a ZIP archive"),
    "image.nii.bz2": (b"BZh91AY&SY", "bzip2"),
    "images.tar.gz": (gzip.compress(b"\0" * 257 + b"ustar\0" + b"\0" * 300), "a TAR archive"),
    "image.nrrd": (b"NRRD0005\ntype: short\n", "an NRRD image"),
    "image.mgz": (gzip.compress(np.array([1, 24, 28, 16, 1, 3], ">i4").tobytes() + b"\0" * 300), "a FreeSurfer image"),
    "twice.nii.gz": (gzip.compress(gzip.compress(b"\0" * 400)), "compressed twice"),
    "image.mha.gz": (gzip.compress(b"ObjectType = Image\n" + b"\0" * 400), "a gzipped MetaImage"),
    "array.npy.gz": (gzip.compress(b"\x93NUMPY\1\0" + b"\0" * 400), "a gzipped NumPy array"),
    "image.png": (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "a PNG picture"),
    "cut.nii.gz": (gzip.compress(ramp().tobytes())[:40], "damaged or cut short"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_a_file_of_another_format_is_named(source: Path, name: str) -> None:
    content, reason = OTHER_FORMATS[name]
    (source / name).write_bytes(content)
    report, volumes = ingest_all(source, nifti_card())
    (entry,) = report.quarantined
    assert len(volumes) == 2 and reason in entry.reason and entry.remedy and entry.kind in ("unsupported", "unreadable")


@pytest.mark.parametrize("damaged", ["T1w.json", "sub-01/anat/sub-01_T1w.json"])
def test_a_damaged_sidecar_is_named_itself_and_the_others_and_the_card_are_used(source: Path, damaged: str) -> None:
    intact = {"T1w.json", "sub-01/anat/sub-01_T1w.json"} - {damaged}
    (source / damaged).write_text('{"EchoTime": 0.03,}')
    (source / intact.pop()).write_text('{"RepetitionTime": 2.5}')
    report, volumes = ingest_all(source, nifti_card())
    assert [(entry.path, entry.reason) for entry in report.quarantined] == [
        (f"file {1 if damaged.startswith('T') else 2} of 4, *.json", "the sidecar is not valid JSON")
    ]
    assert [volume.acquisition.sequence for volume in volumes] == ["T1-weighted"] * 2
    assert 2500.0 in [volume.acquisition.repetition_time_ms for volume in volumes]


def test_a_column_of_findings_that_the_cards_values_do_not_name_is_told(source: Path) -> None:
    """The cells themselves are not quoted: they may be a report. A cell that states nothing is no fault of the card."""
    (source / "participants.tsv").write_text(PARTICIPANTS.replace("patient", "MS", 1).replace("\tpatient", "\tHC"))
    table = {**TABLE, "findings": {"group": "ms", "sex": "male"}, "values": {"1": True, "0": False, "male": True}}
    report, volumes = ingest_all(source, nifti_card(tables=[table]))
    (text,) = texts(report)
    assert text.startswith("a table with 2 cells in the column 'group', none of which is one of the card's values")
    assert not any("ms" in volume.diagnosis for volume in volumes)
    (source / "participants.tsv").write_text(PARTICIPANTS.replace("patient\n", "n/a\n").replace("control\n", "n/a\n"))
    assert not texts(ingest_all(source, nifti_card(tables=[{**TABLE, "values": {"1": True}}]))[0])


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_letters_with_accents_match_in_either_form_of_unicode(
    tmp_path: Path, forms: tuple[Literal["NFC", "NFD"], Literal["NFC", "NFD"]]
) -> None:
    """Names of files that were copied from a Mac have decomposed letters, tables composed ones."""
    folder, row = (unicodedata.normalize(form, "sub-Jörg") for form in forms)
    write_nifti_file(tmp_path / "source" / folder / "a_T1w.nii.gz", ramp())
    (tmp_path / "source" / "participants.tsv").write_text(PARTICIPANTS.replace("sub-01", row))
    report, (volume,) = ingest_all(tmp_path / "source", nifti_card(tables=[TABLE], patient="(sub-[^/]+)/"))
    assert volume.acquisition.sex == "F" and not texts(report)
