"""Facts of slices agree with a separate computation for each label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from components.curation.measure.volume_facts import compute_slice_facts, normalize_box
from components.curation.text.descriptions import describe
from components.curation.text.structure_names import lesion_kinds, lesion_name
from components.ingestion.volume import Acquisition, Volume


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4))
def test_facts_agree_with_a_pass_over_the_volume_for_each_label(seed: int, slices: int, kinds: int) -> None:
    """Compare label counts and connected lesions of each kind and slice, and medians, with numpy and scipy, label by label."""
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
    volume = Volume(voxels, np.eye(4), Acquisition(anatomy="brain"), diagnosis=diagnosis)
    facts = compute_slice_facts(volume, voxels, None, {}, {3: "lesion", 4: "tumor"}, np.eye(4))
    assert facts.lesion_free_slices == facts.content_slices == [0, 1]
    description = describe("v", volume.acquisition, "brain", "", facts, False)
    assert description.fields["pathological_findings.structural_abnormalities"] == "atrophy"
    assert "no lesion" in description.fields["diagnostic_impression.suggestive_of"]
    assert "atrophy" in description.fields["diagnostic_impression.suggestive_of"]
