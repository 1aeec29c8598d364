"""Words follow from header, labels and report, each with its source, and nothing else is said."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from scipy import ndimage

from components.curation.corpus import Corpus
from components.curation.curate_volume import CardFacts, CuratedVolume, curate_volume
from components.curation.measure.regions import locate_structures
from components.curation.measure.volume_facts import SliceFacts, compute_slice_facts, measure_structures, normalize_box
from components.curation.preview import write_preview
from components.curation.store import VolumeStore
from components.curation.table_rows import BoxRecord, MeasureRecord
from components.curation.text.controlled_vocabulary import DEGREES, SCALES, parse_laterality, parse_severity
from components.curation.text.descriptions import describe
from components.curation.text.differentials import differential
from components.curation.text.instructions import candidates
from components.curation.text.phrasings import describe_in_words
from components.curation.text.report_phrases import parse_report
from components.curation.text.template import FIELD_NAMES, HierarchicalDescription, paragraph, parse_paragraph
from components.ingestion.volume import Acquisition, Volume
from components.registries import TASKS
from components.tasks.report import report_text
from components.training.mixture import Mixture, Source
from tests.helpers.corpora import card, tiny_corpus, tiny_series, tiny_settings, tiny_volume

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
TABLE_2 = {
    "vision pretraining": (1.0, 0.0, 0.0),
    "alignment": (0.0, 1.0, 0.0),
    "multimodal pretraining": (0.0, 0.8, 0.2),
    "instruction tuning": (0.0, 0.0, 1.0),
}


def test_the_template_is_that_of_figure_2() -> None:
    assert json.loads(HierarchicalDescription().model_dump_json()) == {s: dict.fromkeys(names, "") for s, names in FIG_2.items()}
    assert tuple(f"{section}.{name}" for section, names in FIG_2.items() for name in names) == FIELD_NAMES


def test_the_schema_that_the_command_prints_accepts_what_is_written_and_no_other_word() -> None:
    done = subprocess.run([sys.executable, "-m", "flows.cli", "schema", "description"], capture_output=True, text=True, check=True)
    schema = Draft202012Validator(json.loads(done.stdout))
    good = HierarchicalDescription.from_fields(
        {"image_modality_sequence.plane": "axial", "diagnostic_impression.severity_or_grading": "BI-RADS 4"}
    )
    assert schema.is_valid(json.loads(good.model_dump_json()))
    for name, word in (("plane", "transverse"), ("sequence", "T9"), ("modality", "CT")):
        assert not schema.is_valid({"image_modality_sequence": {name: word}})
        with pytest.raises(ValidationError):
            HierarchicalDescription.from_fields({f"image_modality_sequence.{name}": word})


@given(st.dictionaries(st.sampled_from(FIELD_NAMES[3:16]), st.from_regex(r"[a-z][a-z ,;0-9]{0,30}[a-z]", fullmatch=True)))
def test_a_paragraph_can_be_read_back(fields: dict[str, str]) -> None:
    assert parse_paragraph(paragraph(fields)) == fields
    for text in describe_in_words(fields):
        assert all(value in text for value in fields.values())


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
def test_gradings_are_read_in_their_scale(text: str, canonical: str | None) -> None:
    assert parse_severity(text) == canonical


def test_every_grading_of_every_scale_is_read_as_itself_and_allowed() -> None:
    for scale, values in SCALES.items():
        for value in values:
            assert parse_severity(f"{scale} {value}") == f"{scale} {value}"
            HierarchicalDescription.from_fields({"diagnostic_impression.severity_or_grading": f"{scale} {value}"})
    for degree in DEGREES:
        HierarchicalDescription.from_fields({"diagnostic_impression.severity_or_grading": degree})


@pytest.mark.parametrize(
    ("text", "side"), [("left lobe", "left"), ("both knees", "bilateral"), ("left and right", "bilateral"), ("lobe", None)]
)
def test_sides_are_read(text: str, side: str | None) -> None:
    assert parse_laterality(text) == side


def test_a_report_gives_its_sentences_to_the_fields_and_names_nobody() -> None:
    found = parse_report(REPORT)
    assert found == {
        "pathological_findings.structural_abnormalities": "Complex tear of the posterior horn of the medial meniscus; No fracture",
        "pathological_findings.signal_abnormalities_or_fluid_collections": "Moderate joint effusion",
        "tissue_signal_characteristics.normal_signal_appearance": "Bone marrow signal is normal",
        "diagnostic_impression.suggestive_of": "Medial meniscus tear; Osteoarthritis, KL grade III",
        "diagnostic_impression.recommendation": "Recommend orthopaedic follow-up in 6 weeks",
        "diagnostic_impression.severity_or_grading": "Kellgren-Lawrence grade 3",
    }


@given(st.text(max_size=300))
def test_any_text_is_a_report_that_names_fields_of_the_template(text: str) -> None:
    assert set(parse_report(text)) <= set(FIELD_NAMES)


def test_measurements_are_those_of_scipy_and_the_geometry() -> None:
    names = {3: "white matter", 4: "lesion"}

    def measured(voxels: np.ndarray, labels: np.ndarray, midline_in_view: bool = True) -> list[MeasureRecord]:
        return measure_structures(voxels, labels, locate_structures(labels, names, affine), names, affine, midline_in_view)

    labels = np.zeros((10, 40, 40), dtype=np.uint8)
    labels[1:9, 5:35, 5:35] = 3
    labels[3:6, 10:16, 8:12] = 4  # W runs to the patient's left: small indices are on the right
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    voxels = np.where(labels == 4, 1.5, np.where(labels == 3, 1.0, 0.0)).astype(np.float32)
    tissue, lesion = measured(voxels, labels)
    assert lesion.volume_ml == pytest.approx((labels == 4).sum() * 16 / 1000) and lesion.size_mm == 12.0
    assert (lesion.side, lesion.inside, lesion.count, lesion.signal) == ("right", "white matter", 1, 1.5)
    assert tissue.signal is None and tissue.side is None and ndimage.label(labels == 4)[1] == lesion.count
    assert measured(voxels[..., ::-1], labels[..., ::-1])[1].side == "left"
    assert measured(voxels, labels, midline_in_view=False)[1].side is None
    both = labels | np.ascontiguousarray(labels[..., ::-1])
    assert measured(voxels, np.where(both == 7, 4, both).astype(np.uint8))[1].side == "bilateral"


@pytest.mark.parametrize(("anatomy", "sides"), [("brain", ("bilateral", "left")), ("knee", (None, None))])
def test_boxes_say_where_lesions_are_whose_outline_nobody_drew(anatomy: str, sides: tuple[str | None, str | None]) -> None:
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    voxels = np.zeros((10, 40, 40), dtype=np.float32)
    voxels[1:9, 5:35, 5:35] = 1
    labels = np.where(voxels > 0, 3, 0).astype(np.uint8)

    def box(column: int, width: int, label: str) -> BoxRecord:
        return normalize_box(10, column, 16, column + width, 40, 40, label)

    boxes = {3: [box(8, 4, "Tear"), box(28, 3, "Tear")], 4: [box(8, 5, "Tear")], 6: [box(30, 3, "Nodule")]}
    volume = Volume(voxels, affine, Acquisition(anatomy=anatomy), labels=labels)
    facts = compute_slice_facts(volume, voxels, labels, boxes, {3: "white matter"}, affine)
    nodule, tear = [one for one in facts.measures if one.lesion]
    assert (tear.name, tear.count, tear.size_mm, tear.inside) == ("tear", 2, 12.0, "white matter")
    assert (nodule.name, nodule.count, nodule.volume_ml, nodule.signal) == ("nodule", 1, None, None)
    assert (tear.side, nodule.side) == sides
    record = describe("v", volume.acquisition, None, "", facts, lesion=True)
    said = record.fields["pathological_findings.masses_or_suspicious_lesions"]
    where = "left, " if sides[1] else ""
    assert said.startswith(f"one nodule, {where}in white matter, 12 mm; two tears, ")


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4))
def test_facts_are_those_of_a_pass_over_the_volume_for_each(seed: int, slices: int, kinds: int) -> None:
    """Counts of each label in each slice, connected lesions of each slice, medians: numpy's and scipy's, label by label."""
    rng = np.random.default_rng(seed)
    labels = ndimage.zoom(rng.integers(0, kinds + 1, (slices, 4, 5)), (1, 3, 3), order=0).astype(np.uint8)
    voxels, affine = rng.normal(size=labels.shape).astype(np.float32), np.eye(4)
    names = {1: "white matter", 2: "edema", 3: "necrotic core", 7: "muscle"}
    facts = compute_slice_facts(
        Volume(voxels, affine, Acquisition(anatomy="brain"), labels=labels), voxels, labels, {}, names, affine
    )
    for value in names:
        counts = (labels == value).sum(axis=(1, 2))
        rich = np.flatnonzero((counts > 0) & (counts >= 0.1 * counts.max(initial=0))).tolist()
        assert facts.structure_slices.get(value, []) == rich
        found = [one for one in facts.measures if one.label_value == value]
        assert len(found) == (counts.sum() > 0)
        if found and found[0].signal is not None:
            reference = np.median(voxels[labels == 1])
            assert found[0].signal == np.median(voxels[labels == value]) / reference
    for index in range(slices):
        lesions = np.isin(labels[index], (2, 3))
        boxes = [
            normalize_box(r.start, c.start, r.stop, c.stop, *lesions.shape, "lesion")
            for r, c in ndimage.find_objects(ndimage.label(lesions, np.ones((3, 3)))[0])
        ]
        assert facts.boxes.get(index, []) == boxes


def _curated(folder: Path, anatomy: str, label_map: dict[int, str], report: str = "") -> CuratedVolume:
    volume = tiny_volume(0, "T2-weighted", lesion=True)
    acquisition = Acquisition(**{**vars(volume.acquisition), "anatomy": anatomy})
    changed = type(volume)(volume.voxels, volume.affine, acquisition, labels=volume.labels, report=report)
    facts = CardFacts(dataset_id="x", name="X", anatomy=anatomy, synthetic=True, label_map=label_map)
    return curate_volume("0" * 32, changed, tiny_series("a", "p" + "0" * 12), facts, tiny_settings(), VolumeStore(folder))


def test_every_field_says_where_it_comes_from(tmp_path: Path) -> None:
    described = _curated(tmp_path, "brain", card().label_map, "IMPRESSION: Low-grade glioma. Biopsy recommended.").description
    sources = {name.partition(".")[2]: source for name, source in described.provenance.items()}
    assert sources["plane"] == "header" and sources["masses_or_suspicious_lesions"] == "label"
    assert sources["abnormal_signal_patterns"] == "statistics" and sources["suggestive_of"] == "report"
    assert sources["recommendation"] == "report" and sources["bony_structures"] == "none"
    assert all((source == "none") == (not described.fields[name]) for name, source in described.provenance.items())
    assert described.fields["diagnostic_impression.severity_or_grading"] == "low-grade"


def test_where_nobody_knows_nothing_is_said() -> None:
    empty = SliceFacts(content_slices=[0], structure_slices={})
    described = describe("0" * 32, Acquisition(modality="MR"), None, "", empty, None)
    assert {name for name, text in described.fields.items() if text} == {"image_modality_sequence.modality"}


def test_a_knee_report_goes_organ_by_organ_as_in_the_paper(tmp_path: Path) -> None:
    names = {1: "femoral cartilage", 2: "femur bone", 3: "muscle", 4: "meniscus tear"}
    curated = _curated(tmp_path, "knee", names, REPORT)
    text = report_text(curated.description, "knee")
    order = [text.index(word) for word in ("Joint space:", "Menisci:", "Cartilage:", "Bone:", "Soft tissues:", "Suggestive of:")]
    assert order == sorted(order) and text.rstrip(".").endswith("follow-up in 6 weeks")
    assert {"knee.menisci", "knee.joint_space", "knee.bone"} <= set(parse_paragraph(text))
    assert not any(f" {side}," in text for side in ("left", "right")), "of a knee alone the side cannot be told"


def test_an_open_question_is_answered_with_a_differential_and_the_datasets_own_finding(tmp_path: Path) -> None:
    names = {1: "cerebrospinal fluid", 2: "grey matter", 3: "white matter", 4: "infarct"}
    curated = _curated(tmp_path, "brain", names)
    facts = CardFacts(dataset_id="x", name="X", anatomy="brain", synthetic=True, label_map=names)
    asked = [one for one in candidates(curated, facts, tiny_settings()) if one.differential]
    assert asked and all(one.differential == differential("infarct", "brain") for one in asked)
    for one in asked:
        assert (
            one.response.startswith("yes") and one.response.endswith("Most likely: infarct.") and "encephalomalacia" in one.response
        )
    assert differential("lesion", "brain") == [], "what the table does not know is not made up"


def test_kept_phrasings_are_never_trained_phrasings() -> None:
    for phrasings in (phrasings for task in TASKS.values() for phrasings in task.all_phrasings):
        assert phrasings.trained and phrasings.held_out and not set(phrasings.trained) & set(phrasings.held_out)


@pytest.mark.parametrize("shares", TABLE_2.values(), ids=TABLE_2.keys())
def test_the_ratios_of_table_2_hold_at_every_prefix(shares: tuple[float, float, float]) -> None:
    """Never a whole sample off; and where the exact number is whole, it is met exactly."""
    mixture = Mixture([Source(name, 100, share) for name, share in zip("ipr", shares, strict=True) if share], seed=7)
    wanted = [share for share in shares if share]
    counts = [0] * len(wanted)
    for number, draw in enumerate(islice(mixture.draws(), 2_000), start=1):
        counts[draw.source] += 1
        assert all(abs(count - share * number) < 1 - 1e-9 for count, share in zip(counts, wanted, strict=True))
        if number % 5 == 0:
            assert counts == [round(share * number) for share in wanted]


def test_the_preview_shows_every_kind_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    corpus: Corpus = tiny_corpus(tmp_path / "corpus", patients=4)
    page = write_preview(corpus, tmp_path / "preview.html", count=2).read_text()
    for word in ("Reconstruction", "Segmentation", "Detection", "Diagnosis", "Report", "statistics", "data:image/png;base64,"):
        assert word in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    assert write_preview(corpus, tmp_path / "again.html", count=2).read_text() == page


def test_measures_carry_units_in_their_names() -> None:
    assert {"volume_ml", "size_mm"} <= set(MeasureRecord.model_fields)
