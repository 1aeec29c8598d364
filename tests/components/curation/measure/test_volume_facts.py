"""Facts of slices agree with a separate computation for each label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label, regionprops

from components.curation.measure.volume_facts import SliceFacts, compute_slice_facts, normalize_box
from components.curation.table_rows import BoxRecord
from components.curation.text.descriptions import describe
from components.curation.text.structure_names import lesion_kinds, lesion_name
from components.ingestion.volume import Acquisition, Volume
from components.tasks.findings import find_volume_outlines
from model_core.boxes import GRID

APART = np.diag([8.0, 8.0, 8.0, 1.0])
"""Affine of voxels so large, mm, that parts are one lesion only where they touch."""


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4))
def test_facts_agree_with_a_pass_over_the_volume_for_each_label(seed: int, slices: int, kinds: int) -> None:
    """Compare label counts and lesions of each kind and slice, and medians, with numpy and scipy, label by label."""
    rng = np.random.default_rng(seed)
    labels = ndimage.zoom(rng.integers(0, kinds + 1, (slices, 4, 5)), (1, 3, 3), order=0).astype(np.uint8)
    voxels, affine = rng.normal(size=labels.shape).astype(np.float32), APART
    names = {1: "white matter", 2: "edema", 3: "necrotic core", 7: "muscle"}
    facts = compute_slice_facts(
        Volume(voxels, affine, Acquisition(anatomy="brain"), labels=labels), voxels, labels, {}, names, affine
    )
    for value in names:
        counts = (labels == value).sum(axis=(1, 2))
        rich = np.flatnonzero((counts > 0) & (counts >= 0.1 * counts.max(initial=0))).tolist()
        assert facts.structure_slices.get(value, []) == rich
        measures = [measure for measure in facts.measures if measure.label_value == value]
        assert len(measures) == (counts.sum() > 0)
        if measures and measures[0].signal is not None:
            reference = np.median(voxels[labels == 1])
            assert measures[0].signal == np.median(voxels[labels == value]) / reference
    for index in range(slices):
        boxes = [
            normalize_box(r.start, c.start, r.stop, c.stop, *labels.shape[1:], names[value])
            for value in (2, 3)
            for r, c in ndimage.find_objects(ndimage.label(labels[index] == value, np.ones((3, 3)))[0])
        ]
        assert facts.boxes.get(index, []) == boxes


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (["grey matter", "lesion"], {"lesion": [2]}),
        (["necrotic tumour core", "peritumoural oedema", "enhancing tumour"], {"tumor": [1, 2, 3]}),
        (["lesion", "tumor", "edema"], {"lesion": [1], "tumor": [2, 3]}),
        (["meniscus tear", "bone marrow edema", "effusion"], {"meniscus tear": [1], "bone marrow edema": [2], "effusion": [3]}),
        (["scar", "edema"], {"scar": [1], "edema": [2]}),
        (["femur", "muscle"], {}),
    ],
)
def test_a_tumor_and_its_edema_are_one_kind_of_finding(names: list[str], kinds: dict[str, list[int]]) -> None:
    label_map = dict(enumerate(names, start=1))
    assert lesion_kinds(label_map) == kinds
    assert lesion_name(label_map) == (next(iter(kinds)) if len(kinds) == 1 else "lesion")


def test_atrophy_is_a_finding_of_the_examination_and_no_lesion() -> None:
    """k-space of a normal study with a finding that has no place: every slice is free of lesions, and atrophy stays a finding."""
    voxels, diagnosis = np.ones((2, 8, 8), np.float32), {"lesion": False, "atrophy": True}
    volume = Volume(voxels, APART, Acquisition(anatomy="brain"), diagnosis=diagnosis)
    facts = compute_slice_facts(volume, voxels, None, {}, {3: "lesion", 4: "tumor"}, APART)
    assert facts.lesion_free_slices == facts.content_slices == [0, 1]
    description = describe("v", volume.acquisition, "brain", "", facts, False)
    assert description.fields["pathological_findings.structural_abnormalities"] == "atrophy"
    assert "no lesion" in description.fields["diagnostic_impression.suggestive_of"]
    assert "atrophy" in description.fields["diagnostic_impression.suggestive_of"]


@given(seed=st.integers(0, 10**6), depth=st.integers(1, 6), share=st.floats(0.01, 0.3))
def test_boxes_of_a_volume_are_those_of_its_lesions(seed: int, depth: int, share: float) -> None:
    """As many as scikit-image's parts of 26-connectivity, around each of them, to the bins of the text."""
    shape = (depth, 16, 32)
    labels = (np.random.default_rng(seed).random(shape) < share).astype(np.uint8)
    volume = Volume(np.ones(shape, np.float32), APART, Acquisition(), labels=labels)
    boxes = compute_slice_facts(volume, volume.voxels, labels, {}, {1: "lesion"}, volume.affine).volume_boxes
    expected = [region.bbox for region in regionprops(label(labels, connectivity=3))]
    edges = [(box.slice0, box.row0, box.col0, box.slice1, box.row1, box.col1) for box in boxes]
    in_bins = [
        tuple(min(round(edge * GRID / size), GRID - 1) for edge, size in zip(box, 2 * shape, strict=True)) for box in expected
    ]
    assert sorted(edges) == sorted(in_bins)


def test_boxes_of_neighboring_slices_are_one_box_of_the_volume() -> None:
    """A dataset with boxes alone; a box on the next slice that touches belongs to the same lesion, one elsewhere does not."""

    def at(row: int, label: str = "tear") -> BoxRecord:
        return BoxRecord(row0=row, col0=10, row1=row + 20, col1=40, label=label)

    boxes = {1: [at(0)], 2: [at(10)], 3: [at(100)]}
    volume = Volume(np.ones((8, 16, 16), np.float32), APART, Acquisition())
    found = compute_slice_facts(volume, volume.voxels, None, boxes, {}, volume.affine).volume_boxes
    assert [(box.slice0, box.slice1, box.row0, box.row1) for box in found] == [(32, 96, 0, 30), (96, 128, 100, 120)]


OBLONG = np.array([[0, 0, -1.6, 60], [0, -0.8, 0, 40], [3.0, 0, 0, -20], [0, 0, 0, 1]], float)
"""Affine of voxels of 3 (slices), 0.8 (rows) and 1.6 mm (columns)."""


def _facts(labels: np.ndarray, boxes: dict[int, list[BoxRecord]] | None = None) -> SliceFacts:
    names = {1: "white matter", 2: "tumor", 3: "edema", 4: "lesion"}
    volume = Volume(np.ones(labels.shape, np.float32), OBLONG, Acquisition(anatomy="brain"), labels=labels)
    return compute_slice_facts(volume, volume.voxels, None if boxes else labels, boxes or {}, names, OBLONG)


def test_specks_of_a_tumors_edema_are_no_tumors_in_boxes_and_measurements() -> None:
    """A gap of six rows has 4.8 mm, over which parts join; one of seven columns has 11.2 mm."""
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[:, 4:60, 4:60] = 1
    labels[2:4, 20:30, 20:26] = 2
    labels[2, 36, 22] = 3  # six rows below: of the same tumor
    labels[2, 25, 33] = 3  # seven columns to the right: a speck of its own
    facts = _facts(labels)
    [box] = facts.volume_boxes
    assert (box.label, box.slice0, box.row0, box.col0) == ("tumor", round(2 * GRID / 6), 80, 80)
    assert (box.row1, box.col1) == (37 * 4, 26 * 4)
    assert [(index, [(one.row1, one.col1) for one in boxes]) for index, boxes in sorted(facts.boxes.items())] == [
        (2, [(37 * 4, 26 * 4)]),
        (3, [(30 * 4, 26 * 4)]),
    ]
    counts = {measure.name: measure.count for measure in facts.measures if measure.lesion}
    assert counts == {"tumor": 1, "edema": 1}


def test_a_volume_of_specks_alone_has_one_box_and_one_lesion() -> None:
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[:, 4:60, 4:60] = 1
    labels[1:3, 10, 10] = labels[4, 50, 50] = 4
    facts = _facts(labels)
    assert len(facts.volume_boxes) == 1 and sorted(facts.boxes) == facts.lesion_slices == [1, 2]
    assert [measure.count for measure in facts.measures if measure.lesion] == [1]


def test_boxes_of_a_dataset_are_all_kept() -> None:
    small = BoxRecord(row0=10, col0=10, row1=12, col1=12, label="tear")
    facts = _facts(np.zeros((6, 64, 64), np.uint8), {2: [small]})
    assert len(facts.volume_boxes) == 1 and facts.boxes == {2: [small]} and facts.measures[0].count == 1


def test_a_perfect_answer_has_the_boxes_of_the_label_map() -> None:
    labels = np.zeros((6, 64, 64), np.uint8)
    labels[2:5, 20:30, 20:26] = labels[2:4, 36:38, 22:24] = labels[1:4, 50:60, 40:50] = 4
    mask = (labels == 4).astype(np.float32)
    found = find_volume_outlines(mask, {"lesion": mask}, (3.0, 0.8, 1.6), pixel_area=0.1)
    boxes = [one.normalize(mask.shape) for one in found]
    expected = [(b.slice0, b.row0, b.col0, b.slice1, b.row1, b.col1) for b in _facts(labels).volume_boxes]
    assert [(b.slice0, b.row0, b.col0, b.slice1, b.row1, b.col1) for b in boxes] == expected and len(expected) == 2
