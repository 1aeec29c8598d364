"""What boxes say of the lesions in them, where nobody outlined those: number, size, side, surroundings. No volume and no signal:
a box holds more than its lesion.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from components.curation.measure.regions import FOREGROUND, Body, Part, connected, most_of
from components.curation.table_rows import BoxRecord, MeasureRecord
from model_core.boxes import GRID


def boxed(
    boxes: dict[int, list[BoxRecord]],
    voxels_DHW: NDArray[np.float32],
    labels_DHW: NDArray[np.uint8] | None,
    label_map: dict[int, str],
    affine: NDArray[np.float64],
    midline_in_view: bool,
) -> list[MeasureRecord]:
    """One measurement for each name that boxes have, by name. Boxes that touch, in a slice or between two, are of one lesion.

    Args:
        boxes: slice -> boxes, not empty.
        labels_DHW: of normal structures, for what the lesion lies in; None = none.
        affine: index (d, h, w, 1) -> RAS+ mm.
        midline_in_view: the middle of the tissue is the middle of the body, so that left and right can be told.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    tissue = voxels_DHW > FOREGROUND
    body = Body.of([_part(tissue, affine)], affine) if midline_in_view and tissue.any() else None
    found = []
    for name, mask in sorted(_masks(boxes, voxels_DHW.shape).items()):
        lesions = connected(_part(mask, affine), affine)
        largest = lesions[0]
        beneath = np.bincount(labels_DHW[largest.box][largest.mask], minlength=256) if labels_DHW is not None else None
        found.append(
            MeasureRecord(
                name=name,
                label_value=None,
                lesion=True,
                count=len(lesions),
                volume_ml=None,
                size_mm=largest.size_mm(spacing_mm),
                side=body.side_of(lesions) if body is not None else None,
                inside=most_of(beneath, label_map) if beneath is not None else None,
                signal=None,
                reference=None,
            )
        )
    return found


def _masks(boxes: dict[int, list[BoxRecord]], shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """Name of a box -> (D, H, W) true inside of the boxes of this name."""
    masks: dict[str, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(shape, dtype=np.bool_))
    for index, of_slice in boxes.items():
        for box in of_slice:
            edges = (box.row0, box.row1, shape[1]), (box.col0, box.col1, shape[2])
            pixels = [
                slice(round(first * size / GRID), max(round(last * size / GRID), round(first * size / GRID) + 1))
                for first, last, size in edges
            ]
            masks[box.label.lower()][index, pixels[0], pixels[1]] = True
    return masks


def _part(mask: NDArray[np.bool_], affine: NDArray[np.float64]) -> Part:
    """A mask of a whole volume, cut to what it marks."""
    marked = [np.flatnonzero(mask.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(along[0]), int(along[-1]) + 1) for along in marked)
    return Part.within(mask[box], box, affine)
