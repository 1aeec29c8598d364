"""What texts need to know about a curated volume, so that they are made, and made again, without its voxels: which slices show
what, and how large, where and how bright each labelled structure is.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import ndimage

from components.curation.records import BoxRecord, MeasureRecord, Row
from components.curation.structures import REFERENCE_TISSUES, is_lesion, lesion_name, lesion_values
from components.curation.vocabulary import Side
from components.ingestion.volume import Volume
from model_core.boxes import GRID

CONTENT_SHARE = 0.1
"""A slice shows something if it has at least this share of what the richest slice of the volume has."""
FOREGROUND = 0.1
"""Signal above this (99.5th percentile = 1) counts as tissue."""
SIGNAL = 0.02
"""Signal above this is more than air."""
MIDLINE = 0.05
"""A lesion whose centre is nearer to the body's middle than this share of its width is in the midline."""
_IN_PLANE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])
MIDLINE_ANATOMIES = ("brain", "head", "prostate", "pelvis", "abdomen", "liver", "spine", "neck", "chest", "heart", "cardiac")


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

    return BoxRecord(
        row0=edge(row0, rows), col0=edge(col0, columns), row1=edge(row1, rows), col1=edge(col1, columns), label=label
    )  # fmt: skip


def _rich(amount_D: NDArray[np.integer[Any]]) -> list[int]:
    """Slices with at least :data:`CONTENT_SHARE` of the richest slice's amount, and not nothing."""
    return np.flatnonzero((amount_D > 0) & (amount_D >= CONTENT_SHARE * amount_D.max(initial=0))).tolist()


def _boxed_area(boxes: dict[int, list[BoxRecord]], slices: int) -> NDArray[np.int64]:
    area_D = np.zeros(slices, dtype=np.int64)
    for index, found in boxes.items():
        area_D[index] = sum((box.row1 - box.row0) * (box.col1 - box.col0) for box in found)
    return area_D


@dataclass(frozen=True)
class _Part:
    """Where a structure is: its bounding box, the mask inside of it, its number of voxels (of each slice of the box, too) and its
    mean x in RAS+ mm.
    """

    box: tuple[slice, ...]
    mask: NDArray[np.bool_]
    voxels: int
    x_mm: float
    by_slice: NDArray[np.int64]

    @classmethod
    def of(cls, labels_DHW: NDArray[np.uint8], value: int, box: tuple[slice, ...], affine: NDArray[np.float64]) -> _Part:
        """One label value inside of its bounding box."""
        return cls.within(labels_DHW[box] == value, box, affine)

    @classmethod
    def within(cls, mask: NDArray[np.bool_], box: tuple[slice, ...], affine: NDArray[np.float64]) -> _Part:
        """A mask that lies at a bounding box."""
        by_row = mask.sum(axis=2)
        along = (by_row.sum(axis=1), by_row.sum(axis=0), mask.sum(axis=(0, 1)))
        voxels = int(along[0].sum())
        index = [edge.start + float(count @ np.arange(len(count))) / voxels for edge, count in zip(box, along, strict=True)]
        return cls(box, mask, voxels, float(affine[0, :3] @ index + affine[0, 3]), along[0])

    def per_slice(self, slices: int) -> NDArray[np.int64]:
        """Voxels in each of the volume's slices."""
        counts_D = np.zeros(slices, np.int64)
        counts_D[self.box[0]] = self.by_slice
        return counts_D

    def size_mm(self, spacing_mm: NDArray[np.float64]) -> float:
        """The longest side of the bounding box."""
        return float(max((edge.stop - edge.start) * step for edge, step in zip(self.box, spacing_mm, strict=True)))


def _components(part: _Part, affine: NDArray[np.float64]) -> list[_Part]:
    """The connected parts (26-neighbourhood) of a structure, largest first."""
    regions, _ = ndimage.label(part.mask, structure=np.ones((3, 3, 3)))
    found = []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        placed = tuple(slice(o.start + b.start, o.start + b.stop) for o, b in zip(part.box, box, strict=True))
        found.append(_Part.within(regions[box] == number, placed, affine))
    return sorted(found, key=lambda one: -one.voxels)


def _side(parts: list[_Part], middle_mm: float, width_mm: float) -> Side:
    """Which side of the body's middle; both where connected parts lie clearly on either side."""
    sides = {one.x_mm > middle_mm for one in parts if abs(one.x_mm - middle_mm) > MIDLINE * width_mm}
    return "midline" if not sides else "bilateral" if len(sides) == 2 else "right" if True in sides else "left"


def _surroundings(labels_DHW: NDArray[np.uint8], part: _Part, label_map: dict[int, str]) -> str | None:
    """The labelled normal structure that most of a lesion's rim (one voxel wide) belongs to."""
    grown = tuple(slice(max(e.start - 1, 0), min(e.stop + 1, n)) for e, n in zip(part.box, labels_DHW.shape, strict=True))
    placed = np.zeros([e.stop - e.start for e in grown], dtype=np.bool_)
    placed[tuple(slice(b.start - g.start, b.stop - g.start) for b, g in zip(part.box, grown, strict=True))] = part.mask
    rim = ndimage.binary_dilation(placed) & ~placed
    counts = np.bincount(labels_DHW[grown][rim], minlength=256)
    normal = [value for value, name in label_map.items() if value and not is_lesion(name) and counts[value]]
    return label_map[max(normal, key=lambda value: counts[value])].lower() if normal else None


def located(labels_DHW: NDArray[np.uint8], label_map: dict[int, str], affine: NDArray[np.float64]) -> dict[int, _Part]:
    """Label value -> where it is, of the values that the map names."""
    plane_HW = np.bitwise_or.reduce(labels_DHW, axis=0)
    shown = [np.bitwise_or.reduce(labels_DHW, axis=(1, 2)), *(np.bitwise_or.reduce(plane_HW, axis=axis) for axis in (1, 0))]
    if not shown[0].any():
        return {}
    start = [int(np.flatnonzero(one)[0]) for one in shown]
    outline = tuple(slice(first, int(np.flatnonzero(one)[-1]) + 1) for first, one in zip(start, shown, strict=True))
    return {
        value: _Part.of(labels_DHW, value, tuple(slice(s + e.start, s + e.stop) for s, e in zip(start, box, strict=True)), affine)
        for value, box in enumerate(ndimage.find_objects(labels_DHW[outline]), start=1)
        if box is not None and value in label_map
    }


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
    parts: dict[int, _Part],
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
    body = [part for value, part in parts.items() if not is_lesion(label_map[value])] or list(parts.values())
    middle_mm = sum(part.x_mm * part.voxels for part in body) / sum(part.voxels for part in body)
    across = np.abs(affine[0, :3])
    spans = [(min(p.box[a].start for p in body), max(p.box[a].stop for p in body)) for a in range(3)]
    width_mm = float(sum(step * (stop - start) for step, (start, stop) in zip(across, spans, strict=True)))
    medians = {value: _median(voxels_DHW[part.box][part.mask]) for value, part in parts.items()}
    reference = next((v for name in REFERENCE_TISSUES for v in parts if label_map[v].lower() == name and medians[v] > 0), None)
    found = []
    for value, part in parts.items():
        lesion = is_lesion(label_map[value])
        pieces = _components(part, affine) if lesion else [part]
        found.append(
            MeasureRecord(
                name=label_map[value].lower(),
                label_value=value,
                lesion=lesion,
                count=len(pieces) if lesion else None,
                volume_ml=part.voxels * voxel_ml,
                size_mm=pieces[0].size_mm(spacing_mm),
                side=_side(pieces, middle_mm, width_mm) if lesion and midline_in_view else None,
                inside=_surroundings(labels_DHW, pieces[0], label_map) if lesion else None,
                signal=medians[value] / medians[reference] if reference is not None and value != reference else None,
                reference=label_map[reference].lower() if reference is not None and value != reference else None,
            )
        )
    return found


def _boxes_of(lesions: list[_Part], shape: tuple[int, ...], name: str) -> dict[int, list[BoxRecord]]:
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
    return SliceFacts(
        content_slices=content,
        structure_slices=structures,
        lesion=name,
        lesion_slices=[index for index in _rich(area_D) if index in boxes],
        lesion_free_slices=[index for index in content if area_D[index] == 0] if known else [],
        boxes=boxes,
        findings=[] if by_slice else [Finding(name=finding, present=is_in) for finding, is_in in sorted(volume.diagnosis.items())],
        measures=measures(voxels, labels, parts, label_map, affine, sided) if labels is not None else [],
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


def midline_in_view(anatomy: str | None) -> bool:
    """Whether an image of this body part holds the body's middle; of a knee or a breast alone, left and right cannot be told."""
    return anatomy is not None and any(word in anatomy.lower() for word in MIDLINE_ANATOMIES)
