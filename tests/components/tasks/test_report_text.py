"""Reports whose signals and findings are those of the masks of the volume, in the words of curation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from components.curation.measure.volume_facts import compute_slice_facts
from components.curation.text.descriptions import describe
from components.curation.text.template import parse_paragraph
from components.ingestion.volume import Acquisition, Volume
from components.tasks.findings import asked_kinds, find_volume_outlines, sum_kinds
from components.tasks.known_structures import Shown
from components.tasks.report_text import label_volume, measure_fields, with_measurements

NAMES = ("grey matter", "lesion", "white matter")
SPACING_MM = (6.0, 2.0, 2.0)
SHAPE = (4, 32, 32)
_MASSES, _IMPRESSION = "pathological_findings.masses_or_suspicious_lesions", "diagnostic_impression.suggestive_of"


def _labels(lesion: bool) -> NDArray[np.uint8]:
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 4:28, 4:28], labels[:, 8:24, 8:24] = 1, 3
    if lesion:
        labels[1:3, 10:16, 10:16] = 2
    return labels


def _volume(labels: NDArray[np.uint8]) -> Volume:
    voxels = np.array([0, 0.6, 0.4, 1.0], np.float32)[labels]
    affine = np.array([[0, 0, -2.0, 32], [0, -2.0, 0, 32], [6.0, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(voxels, affine, Acquisition(sequence="T1-weighted", plane="axial", anatomy="brain"))


def _shown(labels: NDArray[np.uint8]) -> Shown:
    structures = {name: np.where(labels == value, 0.99, 0.0).astype(np.float32) for value, name in enumerate(NAMES, start=1)}
    return Shown(structures["lesion"].copy(), structures)


@pytest.mark.parametrize("lesion", [True, False])
def test_masks_are_described_as_curation_describes_a_label_map(lesion: bool) -> None:
    labels = _labels(lesion)
    volume, names = _volume(labels), dict(enumerate(NAMES, start=1))
    np.testing.assert_array_equal(label_volume(_shown(labels), SPACING_MM, 1), labels)
    facts = compute_slice_facts(volume, volume.voxels, labels, {}, names, volume.affine)
    curated = describe("", volume.acquisition, None, "", facts, lesion)
    assert measure_fields(volume, _shown(labels), 1).fields == curated.fields


def test_a_part_that_has_no_box_is_not_in_the_report() -> None:
    """Neither a few pixels nor a mask of no known finding nor a part of one slice: they are what else is most probable there."""
    shown = _shown(_labels(False))
    shown.mask[1, 10:12, 10:12] = shown.structures["lesion"][1, 10:12, 10:12] = 0.995
    shown.mask[2, 10:20, 10:20], shown.structures["lesion"][2, 10:20, 10:20] = 0.6, 0.2
    shown.mask[0, 10:20, 10:20] = shown.structures["lesion"][0, 10:20, 10:20] = 0.9  # in no neighboring slice
    labels = label_volume(shown, SPACING_MM, 1)
    np.testing.assert_array_equal(labels, _labels(False))
    assert measure_fields(_volume(labels), shown, 1).fields[_MASSES] == "no lesion"


def test_measurements_replace_what_the_network_wrote_and_nothing_else() -> None:
    labels = _labels(True)
    measured = measure_fields(_volume(labels), _shown(labels), 1)
    text = (
        "Modality: MRI. Normal signal appearance: grey matter 0.9 of white matter. Masses or suspicious lesions: no lesion. "
        "Suggestive of: no lesion, no atrophy. Recommendation: follow-up in 6 weeks."
    )
    fields = parse_paragraph(with_measurements(text, measured, {}, "brain"))
    assert fields[_IMPRESSION] == "lesion, no atrophy" and fields[_MASSES] == measured.fields[_MASSES] != "no lesion"
    assert fields["tissue_signal_characteristics.normal_signal_appearance"] == "grey matter 0.6 of white matter"
    assert fields["tissue_signal_characteristics.abnormal_signal_patterns"] == "lesion hypointense to white matter"
    assert fields["diagnostic_impression.recommendation"] == "follow-up in 6 weeks"
    assert "visible_anatomical_structures.organs_or_central_structures" not in fields  # the network did not state it
    silent = parse_paragraph(with_measurements("Modality: MRI. Suggestive of: no lesion.", measured, {}, "brain"))
    assert not any(name.startswith("tissue_signal") for name in silent) and silent[_IMPRESSION] == "lesion"


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize(
    "written", ["", "Structural abnormalities: atrophy. ", "Suggestive of: atrophy. ", "Suggestive of: no atrophy. "]
)
def test_findings_of_a_whole_organ_are_those_of_volumetry_where_it_tells_them(present: bool, written: str) -> None:
    """Whatever the network wrote about them, and in the words of curation."""
    labels = _labels(True)
    measured = measure_fields(_volume(labels), _shown(labels), 1)
    fields = parse_paragraph(with_measurements(f"Modality: MRI. {written}", measured, {"atrophy": present}, "brain"))
    assert fields[_IMPRESSION] == ("lesion, atrophy" if present else "lesion, no atrophy")
    assert fields.get("pathological_findings.structural_abnormalities") == ("atrophy" if present else None)


def test_free_text_stays_as_it_is() -> None:
    measured = measure_fields(_volume(_labels(True)), _shown(_labels(True)), 1)
    assert with_measurements("The brain is normal.", measured, {"atrophy": True}, "brain") == "The brain is normal."


def test_a_finding_has_one_name_in_all_slices() -> None:
    """A tumor that looks like a lesion in one slice is one tumor; a few pixels of edema inside are none."""
    shape = (3, 32, 32)
    tumor, lesion, edema = (np.zeros(shape, np.float32) for _ in range(3))
    inside = np.s_[:, 10:20, 10:20]
    tumor[inside] = 0.9
    tumor[0, 10:20, 10:20], lesion[0, 10:20, 10:20] = 0.1, 0.8
    edema[1, 10, 10:13], tumor[1, 10, 10:13] = 0.9, 0.0
    mask = np.zeros(shape, np.float32)
    mask[inside] = 0.9
    shown = Shown(mask, {"edema": edema, "lesion": lesion, "tumor": tumor})
    labels = label_volume(shown, SPACING_MM, 1)
    assert set(np.unique(labels)) == {0, 3} and (labels[inside] == 3).all()
    [outline] = find_volume_outlines(mask, sum_kinds(shown.structures, asked_kinds("lesion", tuple(shown.structures))), SPACING_MM)
    assert outline.kind == "tumor" and outline.slices == (0, 3)


def test_equal_facts_have_one_wording_whatever_the_numbers_of_labels_are() -> None:
    labels = _labels(True)
    turned = np.array([0, *range(len(NAMES), 0, -1)], np.uint8)[labels]
    volume = _volume(labels)
    texts = []
    for values, names in ((labels, NAMES), (turned, tuple(reversed(NAMES)))):
        facts = compute_slice_facts(volume, volume.voxels, values, {}, dict(enumerate(names, start=1)), volume.affine)
        texts.append(describe("", volume.acquisition, None, "", facts, True).text)
    assert texts[0] == texts[1]
