"""Gradings and sides in free text are parsed into their canonical form."""

from __future__ import annotations

import pytest

from components.curation.text.controlled_vocabulary import DEGREES, SCALES, parse_laterality, parse_severity
from components.curation.text.template import HierarchicalDescription


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("BIRADS 4", "BI-RADS 4"),
        ("BI-RADS category 4a", "BI-RADS 4A"),
        ("PIRADS 5 lesion", "PI-RADS 5"),
        ("PI-RADS 7", None),
        ("WHO grade IV", "WHO grade 4"),
        ("Kellgren-Lawrence grade 3.", "Kellgren-Lawrence grade 3"),
        ("LR-5", "LI-RADS 5"),
        ("moderate effusion", "moderate"),
        ("no abnormality", None),
    ],
)
def test_gradings_are_parsed_into_their_scale(text: str, canonical: str | None) -> None:
    assert parse_severity(text) == canonical


def test_every_grading_of_every_scale_is_parsed_as_itself_and_allowed() -> None:
    for scale, values in SCALES.items():
        for value in values:
            assert parse_severity(f"{scale} {value}") == f"{scale} {value}"
            HierarchicalDescription.from_fields({"diagnostic_impression.severity_or_grading": f"{scale} {value}"})
    for degree in DEGREES:
        HierarchicalDescription.from_fields({"diagnostic_impression.severity_or_grading": degree})


@pytest.mark.parametrize(
    ("text", "side"), [("left lobe", "left"), ("both knees", "bilateral"), ("left and right", "bilateral"), ("lobe", None)]
)
def test_sides_are_parsed(text: str, side: str | None) -> None:
    assert parse_laterality(text) == side
