"""Locate structures in a volume: bounding box, mask, lesions, side of the body, surrounding structure.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.curation.text.controlled_vocabulary import Side
from components.curation.text.structure_names import is_lesion

FOREGROUND = 0.1
"""Signal above this (99.5th percentile = 1) counts as tissue."""
MIDLINE = 0.05
"""A lesion whose center is nearer to the middle of the body than this share of the body's width is in the midline."""
MIDLINE_ANATOMIES = ("brain", "head", "prostate", "pelvis", "abdomen", "liver", "spine", "neck", "chest", "heart", "cardiac")
REACH_MM = 3.0
"""Parts of a mask are one lesion where their surroundings of this width meet: a speck beside a tumor is no second tumor.

Width of the dilation by which the lesion-wise metrics of BraTS 2023 count gliomas.
"""
SHORTEST_MM = 3.0
"""Long axis in a slice from which a part is a lesion and no speck (Filippi et al., Brain 142:1858, 2019)."""
TOLERANCE_MM = 1e-3
"""Roundings of a spacing decide nothing."""


@dataclass(frozen=True)
class Region:
    """The voxels of a structure.

    Attributes:
        box: bounding box in the volume, one slice per axis.
        mask: bool, of the shape of the box.
        voxels: number of voxels of the region.
        x_mm: mean x, RAS+ mm.
        by_slice: voxels in each slice of the box.
    """

    box: tuple[slice, ...]
    mask: NDArray[np.bool_]
    voxels: int
    x_mm: float
    by_slice: NDArray[np.int64]

    @classmethod
    def from_label(cls, labels_DHW: NDArray[np.uint8], value: int, box: tuple[slice, ...], affine: NDArray[np.float64]) -> Region:
        """Build the region of one label value from its bounding box."""
        return cls.from_mask(labels_DHW[box] == value, box, affine)

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], box: tuple[slice, ...], affine: NDArray[np.float64]) -> Region:
        """Build a region from a non-empty mask and the bounding box of the mask in the volume."""
        by_row = mask.sum(axis=2)
        counts_by_axis = (by_row.sum(axis=1), by_row.sum(axis=0), mask.sum(axis=(0, 1)))
        voxels = int(counts_by_axis[0].sum())
        centroid = [
            edge.start + float(counts @ np.arange(len(counts))) / voxels for edge, counts in zip(box, counts_by_axis, strict=True)
        ]
        return cls(box, mask, voxels, float(affine[0, :3] @ centroid + affine[0, 3]), counts_by_axis[0])

    def voxels_per_slice(self, slices: int) -> NDArray[np.int64]:
        """Return the number of voxels in each slice of a volume of ``slices`` slices."""
        counts_D = np.zeros(slices, np.int64)
        counts_D[self.box[0]] = self.by_slice
        return counts_D

    def size_mm(self, spacing_mm: NDArray[np.float64]) -> float:
        """Return the longest side of the bounding box, mm."""
        return float(max((edge.stop - edge.start) * step for edge, step in zip(self.box, spacing_mm, strict=True)))


@dataclass(frozen=True)
class LesionPart:
    """One lesion of a mask: its bounding box in the mask, and its pixels or voxels in that box.

    Attributes:
        is_speck: no connected piece of it in one slice has a long axis of :data:`SHORTEST_MM`.
    """

    box: tuple[slice, ...]
    inside: NDArray[np.bool_]
    is_speck: bool


def split_lesions(mask: NDArray[np.bool_], spacing_mm: Sequence[float] | NDArray[np.float64]) -> list[LesionPart]:
    """Return the lesions of the mask of a slice (H, W) or a volume (D, H, W), specks included, in the order of their first pixels.

    Args:
        mask: the pixels of one kind of finding.
        spacing_mm: along each axis of the mask.
    """
    numbers = _number_lesions(mask, spacing_mm)
    _, first = np.unique(numbers[mask], return_index=True)
    in_order = numbers[mask][np.sort(first)].tolist()
    boxes, long = ndimage.find_objects(numbers), _numbers_of_long_pieces(mask, numbers, spacing_mm)
    return [LesionPart(boxes[n - 1], numbers[boxes[n - 1]] == n, n not in long) for n in in_order]


def counted_lesions(parts: Sequence[LesionPart]) -> list[LesionPart]:
    """Return the lesions without specks; if there are only specks, the largest one."""
    return [part for part in parts if not part.is_speck] or sorted(parts, key=lambda part: -int(part.inside.sum()))[:1]


def lesion_boxes_by_slice(
    mask_DHW: NDArray[np.bool_], spacing_mm: Sequence[float] | NDArray[np.float64]
) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Yield (slice, rows and columns) of the lesions of one kind that each slice of a non-empty mask shows.

    Specks have no box, unless the volume shows nothing else of this kind: then the largest one has.
    """
    largest = counted_lesions(split_lesions(mask_DHW, spacing_mm))[0]
    if largest.is_speck:
        mask_DHW = np.zeros_like(mask_DHW)
        mask_DHW[largest.box] = largest.inside
    for index, mask_HW in enumerate(mask_DHW):
        for part in split_lesions(mask_HW, spacing_mm[1:]):
            if largest.is_speck or not part.is_speck:
                yield index, part.box


def _number_lesions(mask: NDArray[np.bool_], spacing_mm: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int32]:
    """Number the connected parts of a mask, those as one whose surroundings of :data:`REACH_MM` meet; 0 = outside of the mask."""
    neighbors = np.ones((3,) * mask.ndim)
    numbers, count = ndimage.label(mask, structure=neighbors)
    boxes = ndimage.find_objects(numbers)
    for around in _merge_near(boxes, [int(2 * REACH_MM / step) + 2 for step in spacing_mm]):
        inside = mask[around]
        distance_mm = ndimage.distance_transform_edt(~inside, sampling=spacing_mm)  # parts meet within the box around them
        joined, found = ndimage.label(distance_mm <= REACH_MM + TOLERANCE_MM, structure=neighbors)
        numbers[around] = np.where(inside, joined + count, numbers[around])
        count += found
    return np.asarray(numbers, np.int32)


def _merge_near(boxes: Sequence[tuple[slice, ...]], reach: Sequence[int]) -> list[tuple[slice, ...]]:
    """Return the boxes around groups of boxes that are at most ``reach`` pixels apart along every axis; no box that is alone."""
    groups: list[tuple[NDArray[np.int64], NDArray[np.int64], int]] = []  # first and last corner, number of boxes
    for box in boxes:
        low, high, size = np.array([edge.start for edge in box]), np.array([edge.stop for edge in box]), 1
        while near := [group for group in groups if (group[0] <= high + reach).all() and (group[1] >= low - reach).all()]:
            groups = [group for group in groups if all(group is not one for one in near)]
            low, high = np.min([low, *(one[0] for one in near)], 0), np.max([high, *(one[1] for one in near)], 0)
            size += sum(one[2] for one in near)
        groups.append((low, high, size))
    return [tuple(map(slice, low.tolist(), high.tolist())) for low, high, size in groups if size > 1]


def _numbers_of_long_pieces(
    mask: NDArray[np.bool_], numbers: NDArray[np.int32], spacing_mm: Sequence[float] | NDArray[np.float64]
) -> set[int]:
    """Return the numbers of the lesions with a connected piece in one slice whose longer side is at least :data:`SHORTEST_MM`."""
    in_plane = np.ones((3,) * mask.ndim)
    if mask.ndim == 3:
        in_plane[[0, 2]] = 0
    pieces, _ = ndimage.label(mask, structure=in_plane)
    long = set()
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        longer_mm = max((edge.stop - edge.start) * step for edge, step in zip(box[-2:], spacing_mm[-2:], strict=True))
        if longer_mm >= SHORTEST_MM - TOLERANCE_MM:
            long.add(int(numbers[box][pieces[box] == number][0]))
    return long


def lesion_regions(region: Region, affine: NDArray[np.float64], with_specks: bool = False) -> list[Region]:
    """Split a region into its lesions, largest first: :func:`counted_lesions`, or all of them."""
    parts = split_lesions(region.mask, np.linalg.norm(affine[:3, :3], axis=0))
    regions = []
    for part in parts if with_specks else counted_lesions(parts):
        edges = zip(region.box, part.box, strict=True)
        box = tuple(slice(outer.start + inner.start, outer.start + inner.stop) for outer, inner in edges)
        regions.append(Region.from_mask(part.inside, box, affine))
    return sorted(regions, key=lambda lesion: -lesion.voxels)


@dataclass(frozen=True)
class BodyAxis:
    """The left-right axis of the body in view; it decides the side of a lesion.

    Attributes:
        middle_mm: mean x of the body, RAS+ mm.
        width_mm: extent of the body along x, mm.
    """

    middle_mm: float
    width_mm: float

    @classmethod
    def from_regions(cls, regions: list[Region], affine: NDArray[np.float64]) -> BodyAxis:
        """Estimate the axis from the structures that make up the body."""
        voxels = sum(region.voxels for region in regions)
        spans = [
            max(region.box[axis].stop for region in regions) - min(region.box[axis].start for region in regions)
            for axis in range(3)
        ]
        middle_mm = sum(region.x_mm * region.voxels for region in regions) / voxels
        return cls(middle_mm, float(np.abs(affine[0, :3]) @ spans))

    def side_of(self, regions: list[Region]) -> Side:
        """Return the side of the middle that the regions are on; bilateral if they are clearly on both sides."""
        margin_mm = MIDLINE * self.width_mm
        on_right = {region.x_mm > self.middle_mm for region in regions if abs(region.x_mm - self.middle_mm) > margin_mm}
        if not on_right:
            return "midline"
        if len(on_right) == 2:
            return "bilateral"
        return "right" if True in on_right else "left"


def surrounding_structure(labels_DHW: NDArray[np.uint8], region: Region, label_map: dict[int, str]) -> str | None:
    """Return the labeled normal structure that most of a lesion's rim (one voxel wide) belongs to, None if there is none."""
    outer_box = tuple(
        slice(max(edge.start - 1, 0), min(edge.stop + 1, length)) for edge, length in zip(region.box, labels_DHW.shape, strict=True)
    )
    mask = np.zeros([edge.stop - edge.start for edge in outer_box], dtype=np.bool_)
    inner_box = tuple(
        slice(inner.start - outer.start, inner.stop - outer.start) for inner, outer in zip(region.box, outer_box, strict=True)
    )
    mask[inner_box] = region.mask
    rim = ndimage.binary_dilation(mask) & ~mask
    counts = np.bincount(labels_DHW[outer_box][rim], minlength=256)
    return most_frequent_structure(counts, label_map)


def most_frequent_structure(counts: NDArray[np.integer[Any]], label_map: dict[int, str]) -> str | None:
    """Return the normal structure with the most voxels, given a count for each label value; None if there is none."""
    normal = [value for value, name in label_map.items() if value and not is_lesion(name) and counts[value]]
    return label_map[max(normal, key=lambda value: int(counts[value]))].lower() if normal else None


def locate_structures(labels_DHW: NDArray[np.uint8], label_map: dict[int, str], affine: NDArray[np.float64]) -> dict[int, Region]:
    """Return label value -> region, for the values that the label map names."""
    plane_HW = np.bitwise_or.reduce(labels_DHW, axis=0)
    labels_by_axis = [
        np.bitwise_or.reduce(labels_DHW, axis=(1, 2)),
        np.bitwise_or.reduce(plane_HW, axis=1),
        np.bitwise_or.reduce(plane_HW, axis=0),
    ]
    if not labels_by_axis[0].any():
        return {}
    labeled_indices = [np.flatnonzero(along) for along in labels_by_axis]
    start = [int(indices[0]) for indices in labeled_indices]
    outline = tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in labeled_indices)
    regions: dict[int, Region] = {}
    for value, box in enumerate(ndimage.find_objects(labels_DHW[outline]), start=1):
        if box is None or value not in label_map:
            continue
        box_in_volume = tuple(slice(first + edge.start, first + edge.stop) for first, edge in zip(start, box, strict=True))
        regions[value] = Region.from_label(labels_DHW, value, box_in_volume, affine)
    return regions


def shows_midline(anatomy: str | None) -> bool:
    """Return whether an image of this body part contains the middle of the body.

    In an image of a knee or of one breast, left and right cannot be determined.
    """
    return anatomy is not None and any(word in anatomy.lower() for word in MIDLINE_ANATOMIES)
