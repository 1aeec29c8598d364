"""Boxes, names and evidence of findings, from the probabilities of known structures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from components.curation.measure.volume_facts import compute_slice_facts
from components.curation.text.structure_names import lesion_kinds
from components.tasks.findings import (
    THRESHOLD,
    VolumeOutline,
    asked_kinds,
    edges_by_slice,
    evidence,
    find_outlines,
    find_volume_outlines,
    sum_kinds,
)
from model_core.boxes import GRID, TextBox
from tests.helpers.corpora import LABEL_MAP, tiny_volume

APART = (8.0, 8.0)
"""Spacing, mm, at which parts join only where they touch."""
BRAIN = ("edema", "grey matter", "lesion", "tumor", "white matter")


def test_boxes_are_those_of_the_parts_of_a_mask() -> None:
    """Parts that touch at a corner are one, as in label maps; a part of few pixels does not count."""
    probability = np.zeros((40, 40), np.float32)
    probability[2:6, 3:9] = 0.9
    probability[6:9, 9:12] = 0.7  # touches at a corner
    probability[20:30, 20:24] = 0.6
    probability[35, 35] = 1.0
    first, second = find_outlines(probability, {"cyst": probability}, APART, 6, certain=0.5)
    assert (first.edges, second.edges) == ((2, 3, 9, 12), (20, 20, 30, 24))
    assert (round(first.confidence, 3), round(second.confidence, 3)) == (0.9, 0.6)
    expected = ndimage.find_objects(ndimage.label(probability > THRESHOLD, np.ones((3, 3)))[0])
    assert [first.edges, second.edges] == [(r.start, c.start, r.stop, c.stop) for r, c in expected[:2]]
    assert first.normalize("cyst", (40, 40)) == TextBox("cyst", *(round(edge * GRID / 40) for edge in first.edges))
    assert not find_outlines(probability * 0.3, {"cyst": probability * 0.3}, APART, 6, certain=0.1)
    assert [one.edges for one in find_outlines(probability, {"cyst": probability}, APART, 6, certain=0.8)] == [first.edges]


def test_a_box_has_the_name_of_the_structure_that_most_of_it_is() -> None:
    """A tumor and its edema count together; that every finding is also a lesion is in the weights of kinds."""
    lesion, tumor, edema, mask = np.zeros((4, 30, 30), np.float32)
    mask[2:8, 2:8] = mask[12:24, 12:24] = 0.8
    lesion[2:8, 2:8], tumor[2:8, 2:8] = 0.7, 0.1
    tumor[15:20, 15:20], edema[12:24, 12:24], lesion[12:24, 12:24] = 0.3, 0.4, 0.42
    structures = {"lesion": lesion, "tumor": tumor, "edema": edema}
    by_kind = sum_kinds(structures, asked_kinds("Detect any lesion.", tuple(structures)))
    np.testing.assert_allclose(by_kind["tumor"], tumor + edema)
    assert [one.kind for one in find_outlines(mask, by_kind, APART)] == ["lesion", "tumor"]
    assert find_outlines(mask, {"tumor": by_kind["tumor"]}, APART, certain=0.4)[0].edges == (12, 12, 24, 24)


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


def test_evidence_does_not_depend_on_the_size_of_the_pixels() -> None:
    """The same finding of four pixels of 2 mm, in pixels of 2, 1 and 0.5 mm."""
    image = np.zeros((32, 32), np.float32)
    image[4:6, 4:6] = 0.9
    for factor in (1, 2, 4):
        finer = image.repeat(factor, 0).repeat(factor, 1)
        assert evidence(finer, factor**2) == pytest.approx(evidence(image))
    assert evidence(image[::2, ::2], 0.25) == pytest.approx(evidence(image))


def test_edges_by_slice_are_those_of_the_voxels() -> None:
    voxels = np.zeros((4, 9, 9), np.bool_)
    voxels[1, 2:5, 3:4] = voxels[2, 4:8, 0:9] = True
    assert edges_by_slice(voxels) == [(1, (2, 3, 5, 4)), (2, (4, 0, 8, 9))]


def test_boxes_of_a_volume_are_those_of_curation() -> None:
    """A perfect answer has the boxes that a label map gives."""
    for seed in range(3):
        volume = tiny_volume(seed, lesion=True)
        assert volume.labels is not None
        facts = compute_slice_facts(volume, volume.voxels, volume.labels, {}, LABEL_MAP, volume.affine)
        kinds = {kind: np.isin(volume.labels, values).astype(np.float32) for kind, values in lesion_kinds(LABEL_MAP).items()}
        found = find_volume_outlines(np.sum(list(kinds.values()), axis=0), kinds, volume.spacing_mm, pixel_area=0.1)
        assert facts.volume_boxes and {one.confidence for one in found} == {1.0}
        expected = [(b.label, b.slice0, b.row0, b.col0, b.slice1, b.row1, b.col1) for b in facts.volume_boxes]
        boxes = [one.normalize(volume.voxels.shape) for one in found]
        assert [(b.label, b.slice0, b.row0, b.col0, b.slice1, b.row1, b.col1) for b in boxes] == expected
        assert [VolumeOutline.of_box(b, volume.voxels.shape).voxels for b in boxes] == [one.voxels for one in found]


def test_a_finding_on_one_slice_of_several_is_none() -> None:
    mask = np.zeros((4, 20, 20), np.float32)
    mask[1, 2:9, 2:9] = 1
    assert not find_volume_outlines(mask, {"lesion": mask}, (5, *APART))
    assert len(find_volume_outlines(mask[1:2], {"lesion": mask[1:2]}, (5, *APART))) == 1


@pytest.mark.parametrize("pixel_area", [1, 4])
def test_a_finding_that_continues_in_the_next_slice_may_be_smaller(pixel_area: int) -> None:
    """Eight pixels of the network's grid instead of twelve, whatever the pixels of the volume are."""
    side = math.isqrt(pixel_area)
    for columns, in_a_volume in ((4, True), (3, False)):
        mask = np.zeros((4, 40, 40), np.float32)
        mask[1:3, 4 : 4 + 2 * side, 4 : 4 + columns * side] = 1
        assert len(find_volume_outlines(mask, {"lesion": mask}, (5, *APART), pixel_area)) == in_a_volume
        assert not find_volume_outlines(mask[1:2], {"lesion": mask[1:2]}, (5, *APART), pixel_area)
    mask[1, 4 : 4 + 3 * side, 4 : 4 + 4 * side] = 1
    assert len(find_volume_outlines(mask[1:2], {"lesion": mask[1:2]}, (5, *APART), pixel_area)) == 1


def test_findings_on_single_slices_do_not_become_one_by_their_distance() -> None:
    """Slices 3 and 8 of 1 mm, nothing between them; a real one on slices 2 to 4 stays."""
    mask = np.zeros((12, 30, 30), np.float32)
    mask[3, 2:9, 2:9] = mask[8, 2:9, 2:9] = mask[2:5, 18:26, 18:26] = 1
    [found] = find_volume_outlines(mask, {"lesion": mask}, (1.0, 1.0, 1.0))
    assert found.voxels == (slice(2, 5), slice(18, 26), slice(18, 26))
