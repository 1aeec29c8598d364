"""Descriptions follow from header, labels and report; every field has a source, and nothing is invented."""

from __future__ import annotations

from pathlib import Path

from components.curation.curate_volume import CardFacts, CuratedVolume, curate_volume
from components.curation.measure.volume_facts import SliceFacts
from components.curation.store import VolumeStore
from components.curation.text.descriptions import describe
from components.curation.text.differentials import list_considerations
from components.curation.text.instructions import list_candidates
from components.curation.text.template import parse_paragraph
from components.ingestion.volume import Acquisition
from components.tasks.report_text import format_report
from tests.helpers.corpora import card, tiny_series, tiny_settings, tiny_volume

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


def _curate(folder: Path, anatomy: str, label_map: dict[int, str], report: str = "") -> CuratedVolume:
    volume = tiny_volume(0, "T2-weighted", lesion=True)
    acquisition = Acquisition(**{**vars(volume.acquisition), "anatomy": anatomy})
    source = type(volume)(volume.voxels, volume.affine, acquisition, labels=volume.labels, report=report)
    facts = CardFacts(dataset_id="x", name="X", anatomy=anatomy, synthetic=True, label_map=label_map)
    return curate_volume("0" * 32, source, tiny_series("a", "p" + "0" * 12), facts, tiny_settings(), VolumeStore(folder))


def test_every_field_records_its_source(tmp_path: Path) -> None:
    description = _curate(tmp_path, "brain", card().label_map, "IMPRESSION: Low-grade glioma. Biopsy recommended.").description
    sources = {name.partition(".")[2]: source for name, source in description.provenance.items()}
    assert sources["plane"] == "header" and sources["masses_or_suspicious_lesions"] == "label"
    assert sources["abnormal_signal_patterns"] == "statistics" and sources["suggestive_of"] == "report"
    assert sources["recommendation"] == "report" and sources["bony_structures"] == "none"
    assert all((source == "none") == (not description.fields[name]) for name, source in description.provenance.items())
    assert description.fields["diagnostic_impression.severity_or_grading"] == "low-grade"


def test_fields_without_a_source_stay_empty() -> None:
    empty = SliceFacts(content_slices=[0], structure_slices={})
    description = describe("0" * 32, Acquisition(modality="MR"), None, "", empty, None)
    assert {name for name, text in description.fields.items() if text} == {"image_modality_sequence.modality"}


def test_a_knee_report_lists_the_organs_in_the_order_of_the_paper(tmp_path: Path) -> None:
    names = {1: "femoral cartilage", 2: "femur bone", 3: "muscle", 4: "meniscus tear"}
    curated = _curate(tmp_path, "knee", names, REPORT)
    text = format_report(curated.description.fields, "knee")
    order = [text.index(word) for word in ("Joint space:", "Menisci:", "Cartilage:", "Bone:", "Soft tissues:", "Suggestive of:")]
    assert order == sorted(order) and text.rstrip(".").endswith("follow-up in 6 weeks")
    assert {"knee.menisci", "knee.joint_space", "knee.bone"} <= set(parse_paragraph(text))
    assert not any(f" {side}," in text for side in ("left", "right")), "the side of a knee alone cannot be determined"


def test_an_open_question_is_answered_with_a_differential_and_the_finding_of_the_dataset(tmp_path: Path) -> None:
    names = {1: "cerebrospinal fluid", 2: "grey matter", 3: "white matter", 4: "infarct"}
    curated = _curate(tmp_path, "brain", names)
    facts = CardFacts(dataset_id="x", name="X", anatomy="brain", synthetic=True, label_map=names)
    questions = [row for row in list_candidates(curated, facts, tiny_settings()) if row.differential]
    assert questions and all(row.differential == list_considerations("infarct", "brain") for row in questions)
    for row in questions:
        assert row.response.startswith("yes") and row.response.endswith("Most likely: infarct.")
        assert "encephalomalacia" in row.response
    assert list_considerations("lesion", "brain") == [], "a finding without an entry has no differential"
