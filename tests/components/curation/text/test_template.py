"""The template is that of Fig. 2; its schema, paragraph form and inverse agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from components.curation.table_rows import MeasureRecord
from components.curation.text.phrasings import describe_in_words
from components.curation.text.template import FIELD_NAMES, HierarchicalDescription, format_paragraph, parse_paragraph

FIG_2 = {
    "image_modality_sequence": ("modality", "sequence", "plane", "acquisition_quality_or_artifacts"),
    "visible_anatomical_structures": (
        "bony_structures",
        "articular_structures",
        "soft_tissues_and_musculature",
        "organs_or_central_structures",
        "neurovascular_or_connective_structures",
        "spaces_or_cavities_or_joint_compartments",
    ),
    "tissue_signal_characteristics": ("normal_signal_appearance", "abnormal_signal_patterns", "symmetry_and_structural_integrity"),
    "pathological_findings": (
        "structural_abnormalities",
        "signal_abnormalities_or_fluid_collections",
        "masses_or_suspicious_lesions",
    ),
    "diagnostic_impression": ("suggestive_of", "severity_or_grading", "recommendation"),
}


def test_the_template_is_that_of_figure_2() -> None:
    assert json.loads(HierarchicalDescription().model_dump_json()) == {s: dict.fromkeys(names, "") for s, names in FIG_2.items()}
    assert tuple(f"{section}.{name}" for section, names in FIG_2.items() for name in names) == FIELD_NAMES


def test_the_printed_schema_accepts_descriptions_and_refuses_words_outside_the_vocabulary() -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "flows.cli", "schema", "description"], capture_output=True, text=True, check=True
    )
    schema = Draft202012Validator(json.loads(completed.stdout))
    valid = HierarchicalDescription.from_fields(
        {"image_modality_sequence.plane": "axial", "diagnostic_impression.severity_or_grading": "BI-RADS 4"}
    )
    assert schema.is_valid(json.loads(valid.model_dump_json()))
    for name, word in (("plane", "transverse"), ("sequence", "T9"), ("modality", "CT")):
        assert not schema.is_valid({"image_modality_sequence": {name: word}})
        with pytest.raises(ValidationError):
            HierarchicalDescription.from_fields({f"image_modality_sequence.{name}": word})


@given(st.dictionaries(st.sampled_from(FIELD_NAMES[3:16]), st.from_regex(r"[a-z][a-z ,;0-9]{0,30}[a-z]", fullmatch=True)))
def test_a_paragraph_can_be_parsed_back(fields: dict[str, str]) -> None:
    assert parse_paragraph(format_paragraph(fields)) == fields
    for text in describe_in_words(fields):
        assert all(value in text for value in fields.values())


def test_measures_carry_units_in_their_names() -> None:
    assert {"volume_ml", "size_mm"} <= set(MeasureRecord.model_fields)
