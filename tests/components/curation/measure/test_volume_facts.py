"""Facts of slices agree with a separate computation for each label."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from components.curation.measure.volume_facts import compute_slice_facts, normalize_box
from components.ingestion.volume import Acquisition, Volume


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 4))
def test_facts_agree_with_a_pass_over_the_volume_for_each_label(seed: int, slices: int, kinds: int) -> None:
    """Compare label counts and connected lesions of each slice, and medians, with numpy and scipy, label by label."""
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
        lesions = np.isin(labels[index], (2, 3))
        boxes = [
            normalize_box(r.start, c.start, r.stop, c.stop, *lesions.shape, "lesion")
            for r, c in ndimage.find_objects(ndimage.label(lesions, np.ones((3, 3)))[0])
        ]
        assert facts.boxes.get(index, []) == boxes
