"""Boxes give number, size, side and surroundings of lesions without labels."""

from __future__ import annotations

import numpy as np
import pytest

from components.curation.measure.volume_facts import compute_slice_facts, normalize_box
from components.curation.table_rows import BoxRecord
from components.curation.text.descriptions import describe
from components.ingestion.volume import Acquisition, Volume


@pytest.mark.parametrize(("anatomy", "sides"), [("brain", ("bilateral", "left")), ("knee", (None, None))])
def test_lesions_with_boxes_only_are_measured(anatomy: str, sides: tuple[str | None, str | None]) -> None:
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    voxels = np.zeros((10, 40, 40), dtype=np.float32)
    voxels[1:9, 5:35, 5:35] = 1
    labels = np.where(voxels > 0, 3, 0).astype(np.uint8)

    def box(column: int, width: int, label: str) -> BoxRecord:
        return normalize_box(10, column, 16, column + width, 40, 40, label)

    boxes = {3: [box(8, 4, "Tear"), box(28, 3, "Tear")], 4: [box(8, 5, "Tear")], 6: [box(30, 3, "Nodule")]}
    volume = Volume(voxels, affine, Acquisition(anatomy=anatomy), labels=labels)
    facts = compute_slice_facts(volume, voxels, labels, boxes, {3: "white matter"}, affine)
    nodule, tear = [measure for measure in facts.measures if measure.lesion]
    assert (tear.name, tear.count, tear.size_mm, tear.inside) == ("tear", 2, 12.0, "white matter")
    assert (nodule.name, nodule.count, nodule.volume_ml, nodule.signal) == ("nodule", 1, None, None)
    assert (tear.side, nodule.side) == sides
    record = describe("v", volume.acquisition, None, "", facts, lesion=True)
    text = record.fields["pathological_findings.masses_or_suspicious_lesions"]
    side = "left, " if sides[1] else ""
    assert text.startswith(f"one nodule, {side}in white matter, 12 mm; two tears, ")
