"""The facts of the header are a line of the prompt, and are copied into a report."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from components.curation.text.header_facts import NO_HEADER, HeaderFacts
from components.curation.text.phrasings import scan_name
from components.curation.text.template import FIELD_STRENGTH, format_paragraph, parse_paragraph, with_fields
from components.ingestion import read_path
from components.ingestion.volume import Acquisition
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.dicom_files import random_pixels, write_series

FACTS = HeaderFacts("MR", "T1-weighted", "axial", 3.0, 20, 6.0)


def test_the_line_names_what_is_known_only() -> None:
    assert FACTS.line == "axial T1-weighted MRI, 3.0 T, 20 slices of 6.0 mm."
    assert HeaderFacts(field_strength_t=1.5).line == "1.5 T."
    assert NO_HEADER.before("Segment.") == "Segment." and FACTS.before("Segment.").endswith(" mm. Segment.")


def test_a_curated_volume_has_the_line_of_its_source(tmp_path: Path) -> None:
    """The grid of the network is finer or coarser in plane; slices and their distance are those of the source."""
    record = next(v for v in tiny_corpus(tmp_path, patients=1).volumes.values() if v.sequence == "T1-weighted")
    assert HeaderFacts.of_record(record) == HeaderFacts.of_volume(tiny_volume(0))


@pytest.mark.parametrize(
    "text",
    [
        "Modality: MRI. Sequence: T2-weighted. Plane: axial. Suggestive of: lesion.",
        "Plane: sagittal. Suggestive of: lesion. Sequence: T1-weighted.",
        "Suggestive of: lesion.",
        "",
    ],
)
def test_facts_replace_what_a_report_says_about_the_acquisition(text: str) -> None:
    copied = with_fields(text, FACTS.fields)
    assert copied.startswith("Modality: MRI. Sequence: T1-weighted. Plane: axial.")
    fields = parse_paragraph(copied)
    assert {name: fields[name] for name in FACTS.fields} == FACTS.fields
    assert fields.get("diagnostic_impression.suggestive_of") == ("lesion" if text else None)
    assert with_fields(copied, FACTS.fields) == copied
    assert with_fields(text, {}) == text


def test_a_knee_report_keeps_its_organs() -> None:
    text = format_paragraph({"image_modality_sequence.plane": "axial"}) + " Menisci: a tear. Bone: oedema."
    copied = with_fields(text, {"image_modality_sequence.plane": "sagittal"})
    assert copied == "Plane: sagittal. Menisci: a tear. Bone: oedema."


def test_words_that_are_not_of_the_vocabulary_are_no_facts() -> None:
    """A name in any text of the acquisition reaches neither line nor fields."""
    volume = tiny_volume(0)
    texts = {field.name: "Jane Roe" for field in fields(Acquisition) if "str" in str(field.type)}
    facts = HeaderFacts.of_volume(replace(volume, acquisition=replace(volume.acquisition, **texts)))
    assert facts.line == "3.0 T, 8 slices of 12.0 mm." and facts.fields == {FIELD_STRENGTH: "3.0 T"}


NAMED = {
    "PatientName": "Roe^Jane",
    "SeriesDescription": "T1 ROE JANE",
    "ProtocolName": "Jane Roe brain",
    "StudyDescription": "Roe, Jane",
    "SequenceName": "*roe_jane",
    "BodyPartExamined": "ROE",
    "ContrastBolusAgent": "Jane Roe",
    "ScanOptions": "ROE",
    "SequenceVariant": ["SK", "ROE"],
    "ImageType": ["ORIGINAL", "PRIMARY", "M", "ROE"],
    "InstitutionName": "Clinic of Dr Roe",
    "OperatorsName": "Roe^Jane",
    "StationName": "ROE",
    "MagneticFieldStrength": 1.5,
}


def test_a_name_in_any_attribute_of_a_dicom_header_reaches_no_line(tmp_path: Path) -> None:
    write_series(tmp_path, "series", random_pixels(3, 16, 16), **NAMED)
    volume = read_path(tmp_path)
    facts = HeaderFacts.of_volume(volume)
    assert facts.line.endswith("1.5 T, 3 slices of 4.0 mm.") and "axial" in facts.line
    header = volume.acquisition
    for text in (facts.line, *facts.fields.values(), scan_name(facts.sequence, facts.plane, header.anatomy)):
        assert "roe" not in text.lower() and "jane" not in text.lower()
