"""Measure lesions that are known by boxes only: number, size, side, surrounding structure.

Volume and signal are not measured, because a box contains more than its lesion. Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from components.curation.measure.regions import FOREGROUND, BodyAxis, Region, lesion_regions, most_frequent_structure
from components.curation.table_rows import BoxRecord, MeasureRecord
from model_core.boxes import GRID


def measure_boxes(
    boxes: dict[int, list[BoxRecord]],
    voxels_DHW: NDArray[np.float32],
    labels_DHW: NDArray[np.uint8] | None,
    label_map: dict[int, str],
    affine: NDArray[np.float64],
    midline_in_view: bool,
) -> list[MeasureRecord]:
    """Return one measurement for each box label, sorted by label; boxes near each other are one lesion.

    Near each other: see :func:`components.curation.measure.regions.split_lesions`.

    Args:
        boxes: slice -> boxes, not empty.
        voxels_DHW: the stored voxels.
        labels_DHW: normal structures, one of which may surround the lesion; None = no labels.
        label_map: label value -> name.
        affine: index (d, h, w, 1) -> RAS+ mm.
        midline_in_view: the middle of the tissue is the middle of the body, so that left and right can be determined.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    tissue = voxels_DHW > FOREGROUND
    axis = BodyAxis.from_regions([_region_of(tissue, affine)], affine) if midline_in_view and tissue.any() else None
    measures = []
    for name, mask in sorted(_masks_by_label(boxes, voxels_DHW.shape).items()):
        lesions = lesion_regions(_region_of(mask, affine), affine, with_specks=True)
        largest = lesions[0]
        surroundings = None
        if labels_DHW is not None:
            counts = np.bincount(labels_DHW[largest.box][largest.mask], minlength=256)
            surroundings = most_frequent_structure(counts, label_map)
        measures.append(
            MeasureRecord(
                name=name,
                label_value=None,
                lesion=True,
                count=len(lesions),
                volume_ml=None,
                size_mm=largest.size_mm(spacing_mm),
                side=axis.side_of(lesions) if axis is not None else None,
                inside=surroundings,
                signal=None,
                reference=None,
            )
        )
    return measures


def _masks_by_label(boxes: dict[int, list[BoxRecord]], shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """Return box label -> (D, H, W) mask of the pixels inside boxes of this label."""
    masks: dict[str, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(shape, dtype=np.bool_))
    for index, boxes_of_slice in boxes.items():
        for box in boxes_of_slice:
            rows = _pixel_range(box.row0, box.row1, shape[1])
            columns = _pixel_range(box.col0, box.col1, shape[2])
            masks[box.label.lower()][index, rows, columns] = True
    return masks


def _pixel_range(first: int, last: int, size: int) -> slice:
    """Convert normalized box edges (0-255) along an axis of ``size`` pixels to at least one pixel."""
    start = round(first * size / GRID)
    return slice(start, max(round(last * size / GRID), start + 1))


def _region_of(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Region:
    """Build the region of a non-empty mask of a whole volume."""
    indices_by_axis = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in indices_by_axis)
    return Region.from_mask(mask[box], box, affine)
