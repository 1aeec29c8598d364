"""Boxes, names and evidence of findings, from the probabilities of known structures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from components.tasks.findings import THRESHOLD, asked_kinds, evidence, find_outlines, sum_kinds
from model_core.boxes import GRID, TextBox

BRAIN = ("edema", "grey matter", "lesion", "tumor", "white matter")


def test_boxes_are_those_of_the_connected_parts() -> None:
    """Parts that touch at a corner are one, as in label maps; a part of few pixels does not count."""
    probability = np.zeros((40, 40), np.float32)
    probability[2:6, 3:9] = 0.9
    probability[6:9, 9:12] = 0.7  # touches at a corner
    probability[20:30, 20:24] = 0.6
    probability[35, 35] = 1.0
    first, second = find_outlines(probability, {"cyst": probability}, 6, certain=0.5)
    assert (first.edges, second.edges) == ((2, 3, 9, 12), (20, 20, 30, 24))
    assert (round(first.confidence, 3), round(second.confidence, 3)) == (0.9, 0.6)
    expected = ndimage.find_objects(ndimage.label(probability > THRESHOLD, np.ones((3, 3)))[0])
    assert [first.edges, second.edges] == [(r.start, c.start, r.stop, c.stop) for r, c in expected[:2]]
    assert first.normalize("cyst", (40, 40)) == TextBox("cyst", *(round(edge * GRID / 40) for edge in first.edges))
    assert not find_outlines(probability * 0.3, {"cyst": probability * 0.3}, 6, certain=0.1)
    assert [one.edges for one in find_outlines(probability, {"cyst": probability}, 6, certain=0.8)] == [first.edges]


def test_a_box_has_the_name_of_the_structure_that_most_of_it_is() -> None:
    """Every finding is a lesion: a kind with a name of its own wins from a third of it on."""
    lesion, tumor, edema, mask = np.zeros((4, 30, 30), np.float32)
    mask[2:8, 2:8] = mask[12:24, 12:24] = 0.8
    lesion[2:8, 2:8], tumor[2:8, 2:8] = 0.7, 0.1
    tumor[15:20, 15:20], edema[12:24, 12:24], lesion[12:24, 12:24] = 0.3, 0.2, 0.4
    structures = {"lesion": lesion, "tumor": tumor, "edema": edema}
    by_kind = sum_kinds(structures, asked_kinds("Detect any lesion.", tuple(structures)))
    np.testing.assert_allclose(by_kind["tumor"], tumor + edema)
    assert [one.kind for one in find_outlines(mask, by_kind)] == ["lesion", "tumor"]
    assert find_outlines(mask, {"tumor": by_kind["tumor"]}, certain=0.4)[0].edges == (12, 12, 24, 24)


@pytest.mark.parametrize(
    ("question", "kinds"),
    [
        ("Find every lesion in this brain MRI.", {"lesion": ["lesion"], "tumor": ["edema", "tumor"]}),
        ("Is there a tumor?", {"tumor": ["edema", "tumor"]}),
        ("Does this image suggest an atrophy?", {}),
    ],
)
def test_a_question_is_about_the_findings_that_it_names(question: str, kinds: dict[str, list[str]]) -> None:
    assert asked_kinds(question, BRAIN) == kinds
    assert asked_kinds(question, ("grey matter",)) == {}


def test_evidence_grows_with_what_is_seen_and_a_single_pixel_is_little() -> None:
    image = np.zeros((32, 32), np.float32)
    assert evidence(image) == 0
    image[0, 0] = 1
    assert evidence(image) < 0.1
    image[4:9, 4:9] = 0.8
    assert evidence(image) > 0.8
