"""Measurements from labels agree with scipy and the geometry."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from components.curation.measure.regions import locate_structures
from components.curation.measure.volume_facts import measure_structures
from components.curation.table_rows import MeasureRecord


def test_measurements_agree_with_scipy_and_the_geometry() -> None:
    names = {3: "white matter", 4: "lesion"}

    def measure(voxels: np.ndarray, labels: np.ndarray, midline_in_view: bool = True) -> list[MeasureRecord]:
        return measure_structures(voxels, labels, locate_structures(labels, names, affine), names, affine, midline_in_view)

    labels = np.zeros((10, 40, 40), dtype=np.uint8)
    labels[1:9, 5:35, 5:35] = 3
    labels[3:6, 10:16, 8:12] = 4  # W increases toward the patient's left: small indices are on the right
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    voxels = np.where(labels == 4, 1.5, np.where(labels == 3, 1.0, 0.0)).astype(np.float32)
    tissue, lesion = measure(voxels, labels)
    assert lesion.volume_ml == pytest.approx((labels == 4).sum() * 16 / 1000) and lesion.size_mm == 12.0
    assert (lesion.side, lesion.inside, lesion.count, lesion.signal) == ("right", "white matter", 1, 1.5)
    assert tissue.signal is None and tissue.side is None and ndimage.label(labels == 4)[1] == lesion.count
    assert measure(voxels[..., ::-1], labels[..., ::-1])[1].side == "left"
    assert measure(voxels, labels, midline_in_view=False)[1].side is None
    both = labels | np.ascontiguousarray(labels[..., ::-1])
    assert measure(voxels, np.where(both == 7, 4, both).astype(np.uint8))[1].side == "bilateral"
