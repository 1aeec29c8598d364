"""The sentences of a report are assigned to fields of the template, without identifying text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from components.curation.text.report_phrases import parse_report
from components.curation.text.template import FIELD_NAMES

REPORT = """MRI KNEE. Patient: John Doe, born 01.02.1970
CLINICAL HISTORY: Pain, seen by Dr. Miller.
FINDINGS:
Menisci: Complex tear of the posterior horn of the medial meniscus.
Joint: Moderate joint effusion. No fracture.
Bone marrow signal is normal.
Discussed with Dr. Miller about the tear.
IMPRESSION:
1. Medial meniscus tear.
2. Osteoarthritis, KL grade III. Recommend orthopaedic follow-up in 6 weeks.
"""


def test_the_sentences_of_a_report_are_assigned_to_fields_without_identifying_text() -> None:
    assert parse_report(REPORT) == {
        "pathological_findings.structural_abnormalities": "Complex tear of the posterior horn of the medial meniscus; No fracture",
        "pathological_findings.signal_abnormalities_or_fluid_collections": "Moderate joint effusion",
        "tissue_signal_characteristics.normal_signal_appearance": "Bone marrow signal is normal",
        "diagnostic_impression.suggestive_of": "Medial meniscus tear; Osteoarthritis, KL grade III",
        "diagnostic_impression.recommendation": "Recommend orthopaedic follow-up in 6 weeks",
        "diagnostic_impression.severity_or_grading": "Kellgren-Lawrence grade 3",
    }


@given(st.text(max_size=300))
def test_any_text_gives_only_fields_of_the_template(text: str) -> None:
    assert set(parse_report(text)) <= set(FIELD_NAMES)
