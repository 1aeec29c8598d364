"""What instructions need to know about a curated volume, slice by slice, so that they are made without its voxels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from components.curation.records import BoxRecord, Row
from components.curation.structures import lesion_name, lesion_values
from components.ingestion.volume import Volume
from model_core.boxes import GRID

CONTENT_SHARE = 0.1
"""A slice shows something if it has at least this share of what the richest slice of the volume has."""
FOREGROUND = 0.1
"""Signal above this (99.5th percentile = 1) counts as tissue."""


class Finding(Row):
    """A yes-or-no finding of the whole volume, from the dataset's own metadata."""

    name: str
    present: bool


class SliceFacts(Row):
    """Slice indices along axis 0 of the stored arrays.

    Lesion slices are known only where labels or boxes say so for the whole volume; then every slice is in ``lesion_slices``, in
    ``lesion_free_slices``, or has too little lesion to ask about.
    """

    content_slices: list[int] = Field(description="slices with tissue or labels")
    structure_slices: dict[int, list[int]] = Field(description="label value -> slices that show it")
    lesion: str = Field(default="lesion", description="what the lesions of this dataset are called")
    lesion_slices: list[int] = Field(default_factory=list)
    lesion_free_slices: list[int] = Field(default_factory=list, description="of content_slices; empty where unknown")
    boxes: dict[int, list[BoxRecord]] = Field(default_factory=dict, description="lesion slice -> boxes, 0-999")
    findings: list[Finding] = Field(default_factory=list)


def normalised_box(row0: int, col0: int, row1: int, col1: int, rows: int, columns: int, label: str) -> BoxRecord:
    """A half-open pixel box of an (H, W) slice in the 0-999 form of the text."""

    def edge(pixel: int, size: int) -> int:
        return min(round(pixel * GRID / size), GRID - 1)

    return BoxRecord(
        row0=edge(row0, rows), col0=edge(col0, columns), row1=edge(row1, rows), col1=edge(col1, columns), label=label
    )  # fmt: skip


def lesion_boxes(mask: NDArray[np.bool_], label: str) -> list[BoxRecord]:
    """One box per connected lesion (8-neighbourhood) of an (H, W) mask."""
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    height, width = mask.shape
    found = ndimage.find_objects(regions)
    return [normalised_box(rows.start, cols.start, rows.stop, cols.stop, height, width, label) for rows, cols in found]


def _rich(amount_D: NDArray[np.integer[Any]]) -> list[int]:
    """Slices with at least :data:`CONTENT_SHARE` of the richest slice's amount, and not nothing."""
    return np.flatnonzero((amount_D > 0) & (amount_D >= CONTENT_SHARE * amount_D.max(initial=0))).tolist()


def _lesion_area(lesions: NDArray[np.bool_] | None, boxes: dict[int, list[BoxRecord]], slices: int) -> NDArray[np.int64]:
    if lesions is not None:
        return np.asarray(lesions.sum(axis=(1, 2)), dtype=np.int64)
    area = np.zeros(slices, dtype=np.int64)
    for index, found in boxes.items():
        area[index] = sum((box.row1 - box.row0) * (box.col1 - box.col0) for box in found)
    return area


def slice_facts(
    volume: Volume,
    voxels: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    own_boxes: dict[int, list[BoxRecord]],
    label_map: dict[int, str],
) -> SliceFacts:
    """Facts of one curated volume.

    Args:
        volume: the source, for what its metadata says.
        voxels, labels: (D, H, W) as stored.
        own_boxes: the dataset's own boxes on the curated grid, by slice.
        label_map: label value -> name.
    """
    slices = len(voxels)
    pathological = lesion_values(label_map)
    lesions = np.isin(labels, pathological) if labels is not None and pathological else None
    name = lesion_name(label_map) if pathological else "lesion"
    shown = np.asarray(labels) > 0 if labels is not None and labels.any() else voxels > FOREGROUND
    content = _rich(np.count_nonzero(shown, axis=(1, 2)))
    present = [int(value) for value in np.unique(labels) if value] if labels is not None else []
    structures = {value: _rich(np.count_nonzero(labels == value, axis=(1, 2))) for value in present if value in label_map}
    area = _lesion_area(lesions, own_boxes, slices)
    known = lesions is not None or bool(own_boxes) or (bool(volume.diagnosis) and not any(volume.diagnosis.values()))
    boxes = own_boxes
    if lesions is not None and not own_boxes:
        boxes = {int(index): lesion_boxes(lesions[index], name) for index in np.flatnonzero(area)}
    by_slice = known and (lesions is not None or bool(own_boxes))
    return SliceFacts(
        content_slices=content,
        structure_slices=structures,
        lesion=name,
        lesion_slices=[index for index in _rich(area) if index in boxes],
        lesion_free_slices=[index for index in content if area[index] == 0] if known else [],
        boxes=boxes,
        findings=[] if by_slice else [Finding(name=finding, present=is_in) for finding, is_in in sorted(volume.diagnosis.items())],
    )
