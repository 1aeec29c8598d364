"""What texts need to know about a curated volume, so that they are made, and made again, without its voxels: which slices show
what, and how large, where and how bright each labelled structure is.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from components.curation.measure.box_measurements import boxed
from components.curation.measure.regions import FOREGROUND, Body, Part, around, connected, located, midline_in_view
from components.curation.table_rows import BoxRecord, MeasureRecord, Row
from components.curation.text.structure_names import REFERENCE_TISSUES, is_lesion, lesion_name, lesion_values
from components.ingestion.volume import Volume
from model_core.boxes import GRID

CONTENT_SHARE = 0.1
"""A slice shows something if it has at least this share of what the richest slice of the volume has."""
SIGNAL = 0.02
"""Signal above this is more than air."""
_IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


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
    measures: list[MeasureRecord] = Field(default_factory=list, description="of every labelled structure, by label value")


def normalised_box(row0: int, col0: int, row1: int, col1: int, rows: int, columns: int, label: str) -> BoxRecord:
    """A half-open pixel box of an (H, W) slice in the 0-999 form of the text."""

    def edge(pixel: int, size: int) -> int:
        return min(round(pixel * GRID / size), GRID - 1)

    return BoxRecord(row0=edge(row0, rows), col0=edge(col0, columns), row1=edge(row1, rows), col1=edge(col1, columns), label=label)


def _rich(amount_D: NDArray[np.integer[Any]]) -> list[int]:
    """Slices with at least :data:`CONTENT_SHARE` of the richest slice's amount, and not nothing."""
    return np.flatnonzero((amount_D > 0) & (amount_D >= CONTENT_SHARE * amount_D.max(initial=0))).tolist()


def _boxed_area(boxes: dict[int, list[BoxRecord]], slices: int) -> NDArray[np.int64]:
    area_D = np.zeros(slices, dtype=np.int64)
    for index, found in boxes.items():
        area_D[index] = sum((box.row1 - box.row0) * (box.col1 - box.col0) for box in found)
    return area_D


def _median(values: NDArray[np.float32]) -> float:
    """:func:`numpy.median` of at least one value; the values are put into another order."""
    if np.isnan(values).any():
        return float("nan")
    middle = len(values) // 2
    values.partition(middle)
    if len(values) % 2:
        return float(values[middle])
    return float(np.mean([values[:middle].max(), values[middle]], dtype=values.dtype))


def measures(
    voxels_DHW: NDArray[np.float32],
    labels_DHW: NDArray[np.uint8],
    parts: dict[int, Part],
    label_map: dict[int, str],
    affine: NDArray[np.float64],
    midline_in_view: bool,
) -> list[MeasureRecord]:
    """Volume, size, side, surroundings and relative signal of every labelled structure, by label value.

    Args:
        parts: :func:`located` of the labels.
        affine: index (d, h, w, 1) -> RAS+ mm.
        midline_in_view: the middle of what is labelled is the middle of the body, so that left and right can be told.
    """
    if not parts:
        return []
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    body = Body.of([part for value, part in parts.items() if not is_lesion(label_map[value])] or list(parts.values()), affine)
    medians = {value: _median(voxels_DHW[part.box][part.mask]) for value, part in parts.items()}
    reference = next((v for name in REFERENCE_TISSUES for v in parts if label_map[v].lower() == name and medians[v] > 0), None)
    found = []
    for value, part in parts.items():
        lesion = is_lesion(label_map[value])
        pieces = connected(part, affine) if lesion else [part]
        found.append(
            MeasureRecord(
                name=label_map[value].lower(),
                label_value=value,
                lesion=lesion,
                count=len(pieces) if lesion else None,
                volume_ml=part.voxels * voxel_ml,
                size_mm=pieces[0].size_mm(spacing_mm),
                side=body.side_of(pieces) if lesion and midline_in_view else None,
                inside=around(labels_DHW, pieces[0], label_map) if lesion else None,
                signal=medians[value] / medians[reference] if reference is not None and value != reference else None,
                reference=label_map[reference].lower() if reference is not None and value != reference else None,
            )
        )
    return found


def _boxes_of(lesions: list[Part], shape: tuple[int, ...], name: str) -> dict[int, list[BoxRecord]]:
    """Boxes of the connected lesions of each slice (8-neighbourhood) of a (D, H, W) volume; kinds that touch are one lesion."""
    if not lesions:
        return {}
    start = [min(part.box[axis].start for part in lesions) for axis in range(3)]
    mask = np.zeros([max(part.box[axis].stop for part in lesions) - start[axis] for axis in range(3)], dtype=np.bool_)
    for part in lesions:
        mask[tuple(slice(e.start - s, e.stop - s) for e, s in zip(part.box, start, strict=True))] |= part.mask
    boxes: dict[int, list[BoxRecord]] = {}
    for found in ndimage.find_objects(ndimage.label(mask, structure=_IN_PLANE)[0]):
        at, rows, cols = (slice(s + edge.start, s + edge.stop) for s, edge in zip(start, found, strict=True))
        box = normalised_box(rows.start, cols.start, rows.stop, cols.stop, shape[1], shape[2], name)
        boxes.setdefault(at.start, []).append(box)
    return boxes


def slice_facts(
    volume: Volume,
    voxels: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    own_boxes: dict[int, list[BoxRecord]],
    label_map: dict[int, str],
    affine: NDArray[np.float64],
) -> SliceFacts:
    """Facts of one curated volume.

    Args:
        volume: the source, for what its metadata says.
        voxels, labels: (D, H, W) as stored.
        own_boxes: the dataset's own boxes on the curated grid, by slice.
        label_map: label value -> name.
        affine: of the stored arrays, index (d, h, w, 1) -> RAS+ mm.
    """
    slices = len(voxels)
    pathological = lesion_values(label_map)
    labelled = labels is not None and bool(pathological)
    name = lesion_name(label_map) if pathological else "lesion"
    parts = located(labels, label_map, affine) if labels is not None else {}
    shown_D = np.count_nonzero(labels, axis=(1, 2)) if labels is not None else np.zeros(slices, np.int64)
    if not shown_D.any():
        shown_D = np.count_nonzero(voxels > FOREGROUND, axis=(1, 2))
    content = _rich(shown_D)
    structures = {value: _rich(part.per_slice(slices)) for value, part in parts.items()}
    lesions = [parts[value] for value in pathological if value in parts]
    area_D = sum((part.per_slice(slices) for part in lesions), np.zeros(slices, np.int64))
    if not labelled:
        area_D = _boxed_area(own_boxes, slices)
    known = labelled or bool(own_boxes) or (bool(volume.diagnosis) and not any(volume.diagnosis.values()))
    boxes = own_boxes
    if labels is not None and labelled and not own_boxes:
        boxes = _boxes_of(lesions, labels.shape, name)
    by_slice = known and (labelled or bool(own_boxes))
    sided = midline_in_view(volume.acquisition.anatomy)
    found = measures(voxels, labels, parts, label_map, affine, sided) if labels is not None else []
    if own_boxes and not lesions:
        found += boxed(own_boxes, voxels, labels, label_map, affine, sided)
    return SliceFacts(
        content_slices=content,
        structure_slices=structures,
        lesion=name,
        lesion_slices=[index for index in _rich(area_D) if index in boxes],
        lesion_free_slices=[index for index in content if area_D[index] == 0] if known else [],
        boxes=boxes,
        findings=[] if by_slice else [Finding(name=finding, present=is_in) for finding, is_in in sorted(volume.diagnosis.items())],
        measures=found,
    )


def annotated_on_tissue(
    voxels_DHW: NDArray[np.float32], labels_DHW: NDArray[np.uint8] | None, boxes: dict[int, list[BoxRecord]]
) -> float | None:
    """Share of labelled (where there are none, of boxed) pixels that show signal: near 0 for what is flipped or shifted."""
    if labels_DHW is not None and labels_DHW.any():
        return float(np.mean(voxels_DHW[labels_DHW > 0] > SIGNAL))
    rows, columns = voxels_DHW.shape[1] / GRID, voxels_DHW.shape[2] / GRID
    inside = [
        (voxels_DHW[index, int(b.row0 * rows) : int(b.row1 * rows) + 1, int(b.col0 * columns) : int(b.col1 * columns) + 1] > SIGNAL)
        for index, found in boxes.items()
        for b in found
    ]
    return float(np.concatenate([one.ravel() for one in inside]).mean()) if inside else None


def neighbour_correlation(image_DHW: NDArray[np.float32]) -> float | None:
    """Pearson correlation of pixels with their neighbours, the lower of along rows and along columns: near 0 for noise.

    None where there is nothing to correlate: one row or column, a constant image, no finite number.
    """
    found = []
    for axis in (1, 2):
        length = image_DHW.shape[axis]
        first, second = (np.take(image_DHW, range(start, start + length - 1), axis=axis).ravel() for start in (0, 1))
        known = np.isfinite(first) & np.isfinite(second)
        first, second = (one[known] - one[known].mean() if known.any() else one[:0] for one in (first, second))
        spread = float(np.sqrt(np.vdot(first, first) * np.vdot(second, second)))
        if spread == 0:
            return None
        found.append(float(np.vdot(first, second)) / spread)
    return min(found)
