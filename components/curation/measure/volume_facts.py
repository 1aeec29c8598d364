"""Compute the facts of a curated volume from which its texts are written, so that texts can be rewritten without its voxels.

The facts are: which slices show tissue, a structure or a lesion, and size, position and signal of each labeled structure.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from components.curation.measure.box_measurements import measure_boxes
from components.curation.measure.regions import (
    FOREGROUND,
    BodyAxis,
    LesionPart,
    Region,
    counted_lesions,
    lesion_boxes_by_slice,
    lesion_regions,
    locate_structures,
    shows_midline,
    split_lesions,
    surrounding_structure,
)
from components.curation.table_rows import BoxRecord, MeasureRecord, Row, VolumeBoxRecord
from components.curation.text.structure_names import (
    REFERENCE_TISSUES,
    is_diffuse,
    is_lesion,
    lesion_kinds,
    lesion_name,
    lesion_values,
)
from components.ingestion.volume import Volume
from model_core.boxes import GRID

CONTENT_SHARE = 0.1
"""A slice shows a structure if it has at least this share of the voxels of the richest slice of the volume."""
SIGNAL = 0.02
"""Signal above this is more than air."""


class Finding(Row):
    """A yes-or-no finding of the whole volume, from the dataset's own metadata."""

    name: str
    present: bool


class SliceFacts(Row):
    """Slice indices along axis 0 of the stored arrays.

    Lesion slices are known only if labels or boxes cover the whole volume; then every slice is in ``lesion_slices``, in
    ``lesion_free_slices``, or has too little lesion to ask about.
    """

    content_slices: list[int] = Field(description="slices with tissue or labels")
    structure_slices: dict[int, list[int]] = Field(description="label value -> slices that show it")
    lesion: str = Field(default="lesion", description="name of the lesions of this dataset")
    lesion_slices: list[int] = Field(default_factory=list)
    lesion_free_slices: list[int] = Field(default_factory=list, description="of content_slices; empty if unknown")
    boxes: dict[int, list[BoxRecord]] = Field(default_factory=dict, description="lesion slice -> boxes, 0-255")
    volume_boxes: list[VolumeBoxRecord] = Field(default_factory=list, description="boxes of the lesions of the volume")
    findings: list[Finding] = Field(default_factory=list)
    measures: list[MeasureRecord] = Field(default_factory=list, description="of every labeled structure, by label value")


def normalize_box(row0: int, col0: int, row1: int, col1: int, rows: int, columns: int, label: str) -> BoxRecord:
    """Convert a half-open pixel box of an (H, W) slice to the 0-255 form of the text."""

    def edge(pixel: int, size: int) -> int:
        return min(round(pixel * GRID / size), GRID - 1)

    return BoxRecord(row0=edge(row0, rows), col0=edge(col0, columns), row1=edge(row1, rows), col1=edge(col1, columns), label=label)


def normalize_volume_box(box: tuple[slice, ...], shape: tuple[int, ...], label: str) -> VolumeBoxRecord:
    """Convert a half-open voxel box of a (D, H, W) volume to the 0-255 form of the text; no side becomes empty."""
    edges = []
    for side, size in zip(box, shape, strict=True):
        first = min(round(side.start * GRID / size), GRID - 2)
        edges.append((first, min(max(round(side.stop * GRID / size), first + 1), GRID - 1)))
    (slice0, slice1), (row0, row1), (col0, col1) = edges
    return VolumeBoxRecord(slice0=slice0, row0=row0, col0=col0, slice1=slice1, row1=row1, col1=col1, label=label)


def measure_structures(
    voxels_DHW: NDArray[np.float32],
    labels_DHW: NDArray[np.uint8],
    regions: dict[int, Region],
    label_map: dict[int, str],
    affine: NDArray[np.float64],
    midline_in_view: bool,
) -> list[MeasureRecord]:
    """Measure volume, size, side, surroundings and relative signal of every labeled structure, by label value.

    Args:
        voxels_DHW, labels_DHW: as stored.
        regions: :func:`locate_structures` of the labels.
        label_map: label value -> name.
        affine: index (d, h, w, 1) -> RAS+ mm.
        midline_in_view: the middle of the labeled structures is the middle of the body, so that left and right can be determined.
    """
    if not regions:
        return []
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    normal = [region for value, region in regions.items() if not is_lesion(label_map[value])]
    axis = BodyAxis.from_regions(normal or list(regions.values()), affine)
    medians = {value: _median(voxels_DHW[region.box][region.mask]) for value, region in regions.items()}
    reference = _reference_value(medians, label_map)
    measures = []
    for value, region in regions.items():
        lesion = is_lesion(label_map[value])
        components = lesion_regions(region, affine) if lesion else [region]
        reference_of_value = reference if value != reference else None
        measures.append(
            MeasureRecord(
                name=label_map[value].lower(),
                label_value=value,
                lesion=lesion,
                count=len(components) if lesion else None,
                volume_ml=region.voxels * voxel_ml,
                size_mm=components[0].size_mm(spacing_mm),
                side=axis.side_of(components) if lesion and midline_in_view else None,
                inside=surrounding_structure(labels_DHW, components[0], label_map) if lesion else None,
                signal=medians[value] / medians[reference_of_value] if reference_of_value is not None else None,
                reference=label_map[reference_of_value].lower() if reference_of_value is not None else None,
            )
        )
    return measures


def _reference_value(medians: dict[int, float], label_map: dict[int, str]) -> int | None:
    """Return the label value of the first reference tissue with a positive median signal."""
    for name in REFERENCE_TISSUES:
        for value, median in medians.items():
            if label_map[value].lower() == name and median > 0:
                return value
    return None


def _median(values: NDArray[np.float32]) -> float:
    """Compute :func:`numpy.median` of at least one value; the values are reordered in place."""
    if np.isnan(values).any():
        return float("nan")
    middle = len(values) // 2
    values.partition(middle)
    if len(values) % 2:
        return float(values[middle])
    return float(np.mean([values[:middle].max(), values[middle]], dtype=values.dtype))


def compute_slice_facts(
    volume: Volume,
    voxels: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    dataset_boxes: dict[int, list[BoxRecord]],
    label_map: dict[int, str],
    affine: NDArray[np.float64],
) -> SliceFacts:
    """Compute the facts of one curated volume.

    Args:
        volume: the source, for its metadata.
        voxels, labels: (D, H, W) as stored.
        dataset_boxes: the dataset's own boxes on the curated grid, by slice.
        label_map: label value -> name.
        affine: of the stored arrays, index (d, h, w, 1) -> RAS+ mm.
    """
    slices = len(voxels)
    lesion_labels = lesion_values(label_map)
    lesions_are_labeled = labels is not None and bool(lesion_labels)
    name = lesion_name(label_map) if lesion_labels else "lesion"
    regions = locate_structures(labels, label_map, affine) if labels is not None else {}
    content = _content_slices(voxels, labels)
    lesions = [regions[value] for value in lesion_labels if value in regions]
    lesion_area_D = sum((region.voxels_per_slice(slices) for region in lesions), np.zeros(slices, np.int64))
    if not lesions_are_labeled:
        lesion_area_D = _box_area(dataset_boxes, slices)
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    boxes = dataset_boxes
    if labels is not None and lesions_are_labeled and not dataset_boxes:
        boxes = {}
        for kind, values in lesion_kinds(label_map).items():
            of_kind = [regions[value] for value in values if value in regions]
            for index, found in _lesion_boxes(of_kind, labels.shape, spacing_mm, kind).items():
                boxes.setdefault(index, []).extend(found)
    localized = lesions_are_labeled or bool(dataset_boxes)
    focal = [present for finding, present in volume.diagnosis.items() if not is_diffuse(finding)]
    healthy = bool(focal) and not any(focal)
    midline = shows_midline(volume.acquisition.anatomy)
    measures = measure_structures(voxels, labels, regions, label_map, affine, midline) if labels is not None else []
    if dataset_boxes and not lesions:
        measures += measure_boxes(dataset_boxes, voxels, labels, label_map, affine, midline)
    findings = [Finding(name=finding, present=present) for finding, present in sorted(volume.diagnosis.items())]
    return SliceFacts(
        content_slices=content,
        structure_slices={value: _rich_slices(region.voxels_per_slice(slices)) for value, region in regions.items()},
        lesion=name,
        lesion_slices=[index for index in _rich_slices(lesion_area_D) if index in boxes],
        lesion_free_slices=[index for index in content if lesion_area_D[index] == 0] if localized or healthy else [],
        boxes=boxes,
        volume_boxes=_volume_boxes(regions, labels, boxes, voxels.shape, spacing_mm, label_map),
        findings=[finding for finding in findings if is_diffuse(finding.name) or not localized],
        measures=measures,
    )


def _volume_boxes(
    regions: dict[int, Region],
    labels: NDArray[np.uint8] | None,
    boxes: dict[int, list[BoxRecord]],
    shape: tuple[int, ...],
    spacing_mm: NDArray[np.float64],
    label_map: dict[int, str],
) -> list[VolumeBoxRecord]:
    """Return the boxes of the lesions of each kind, of label maps or else of the boxes of slices."""
    found: list[VolumeBoxRecord] = []
    if labels is not None and lesion_values(label_map):
        for kind, values in lesion_kinds(label_map).items():
            of_kind = [regions[value] for value in values if value in regions]
            if of_kind:
                mask, start = _union(of_kind)
                found += _boxes_3d(counted_lesions(split_lesions(mask, spacing_mm)), start, shape, kind)
        return found
    grid = (shape[0], GRID, GRID)
    grid_mm = spacing_mm * np.divide(shape, grid)
    for label in sorted({box.label for on_slice in boxes.values() for box in on_slice}):
        mask = np.zeros(grid, np.bool_)
        for index, on_slice in boxes.items():
            for box in on_slice:
                if box.label == label:
                    mask[index, box.row0 : box.row1, box.col0 : box.col1] = True
        found += _boxes_3d(split_lesions(mask, grid_mm), (0, 0, 0), grid, label)
    return found


def _boxes_3d(parts: Sequence[LesionPart], start: tuple[int, ...], shape: tuple[int, ...], label: str) -> list[VolumeBoxRecord]:
    """Return the boxes of the parts of a mask that begins at ``start`` in a volume of this shape."""
    boxes = [tuple(slice(s + edge.start, s + edge.stop) for s, edge in zip(start, part.box, strict=True)) for part in parts]
    return [normalize_volume_box(box, shape, label) for box in boxes]


def _union(regions: list[Region]) -> tuple[NDArray[np.bool_], tuple[int, ...]]:
    """Return the mask of some regions in the box around them, and the first voxel of that box."""
    start = tuple(min(region.box[axis].start for region in regions) for axis in range(3))
    mask = np.zeros([max(region.box[axis].stop for region in regions) - start[axis] for axis in range(3)], dtype=np.bool_)
    for region in regions:
        mask[tuple(slice(e.start - s, e.stop - s) for e, s in zip(region.box, start, strict=True))] |= region.mask
    return mask, start


def _content_slices(voxels: NDArray[np.float32], labels: NDArray[np.uint8] | None) -> list[int]:
    """Return the slices with labels or, if nothing is labeled, with tissue."""
    count_D = np.count_nonzero(labels, axis=(1, 2)) if labels is not None else np.zeros(len(voxels), np.int64)
    if not count_D.any():
        count_D = np.count_nonzero(voxels > FOREGROUND, axis=(1, 2))
    return _rich_slices(count_D)


def _rich_slices(amount_D: NDArray[np.integer[Any]]) -> list[int]:
    """Return the slices with a positive amount of at least :data:`CONTENT_SHARE` of that of the richest slice."""
    return np.flatnonzero((amount_D > 0) & (amount_D >= CONTENT_SHARE * amount_D.max(initial=0))).tolist()


def _box_area(boxes: dict[int, list[BoxRecord]], slices: int) -> NDArray[np.int64]:
    """Return the sum of the box areas of each slice, in normalized units."""
    area_D = np.zeros(slices, dtype=np.int64)
    for index, boxes_of_slice in boxes.items():
        area_D[index] = sum((box.row1 - box.row0) * (box.col1 - box.col0) for box in boxes_of_slice)
    return area_D


def _lesion_boxes(
    lesions: list[Region], shape: tuple[int, ...], spacing_mm: NDArray[np.float64], name: str
) -> dict[int, list[BoxRecord]]:
    """Return slice -> boxes of the lesions of one kind that each slice of a (D, H, W) volume shows."""
    if not lesions:
        return {}
    mask, (first, row, column) = _union(lesions)
    boxes: dict[int, list[BoxRecord]] = {}
    for index, (rows, columns) in lesion_boxes_by_slice(mask, spacing_mm):
        edges = (row + rows.start, column + columns.start, row + rows.stop, column + columns.stop)
        boxes.setdefault(first + index, []).append(normalize_box(*edges, shape[1], shape[2], name))
    return boxes


def annotated_share_on_tissue(
    voxels_DHW: NDArray[np.float32], labels_DHW: NDArray[np.uint8] | None, boxes: dict[int, list[BoxRecord]]
) -> float | None:
    """Return the share of labeled pixels (without labels: of pixels in boxes) that show signal; None without annotation.

    It is near 0 for an annotation that is flipped or shifted.
    """
    if labels_DHW is not None and labels_DHW.any():
        return float(np.mean(voxels_DHW[labels_DHW > 0] > SIGNAL))
    rows, columns = voxels_DHW.shape[1] / GRID, voxels_DHW.shape[2] / GRID
    shows_signal = []
    for index, boxes_of_slice in boxes.items():
        for box in boxes_of_slice:
            box_rows = slice(int(box.row0 * rows), int(box.row1 * rows) + 1)
            box_columns = slice(int(box.col0 * columns), int(box.col1 * columns) + 1)
            shows_signal.append((voxels_DHW[index, box_rows, box_columns] > SIGNAL).ravel())
    return float(np.concatenate(shows_signal).mean()) if shows_signal else None


def correlate_neighbors(image_DHW: NDArray[np.float32]) -> float | None:
    """Return the Pearson correlation of neighboring pixels, the lower of that along rows and along columns; near 0 for noise.

    None if it is undefined: one row or column, a constant image, no finite number.
    """
    correlations = []
    for axis in (1, 2):
        length = image_DHW.shape[axis]
        first, second = (np.take(image_DHW, range(start, start + length - 1), axis=axis).ravel() for start in (0, 1))
        finite = np.isfinite(first) & np.isfinite(second)
        if not finite.any():
            return None
        first, second = first[finite] - first[finite].mean(), second[finite] - second[finite].mean()
        norm = float(np.sqrt(np.vdot(first, first) * np.vdot(second, second)))
        if norm == 0:
            return None
        correlations.append(float(np.vdot(first, second)) / norm)
    return min(correlations)
