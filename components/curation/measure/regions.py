"""Where in a volume something lies: its bounding box, its voxels, its connected parts, its side of the body.

Shape letters: D slices, H rows, W columns.
"""

from __future__ import annotations

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
"""A lesion whose centre is nearer to the body's middle than this share of its width is in the midline."""
MIDLINE_ANATOMIES = ("brain", "head", "prostate", "pelvis", "abdomen", "liver", "spine", "neck", "chest", "heart", "cardiac")


@dataclass(frozen=True)
class Part:
    """Where a structure is: its bounding box, the mask inside of it, its number of voxels (of each slice of the box, too) and its
    mean x in RAS+ mm.
    """

    box: tuple[slice, ...]
    mask: NDArray[np.bool_]
    voxels: int
    x_mm: float
    by_slice: NDArray[np.int64]

    @classmethod
    def of(cls, labels_DHW: NDArray[np.uint8], value: int, box: tuple[slice, ...], affine: NDArray[np.float64]) -> Part:
        """One label value inside of its bounding box."""
        return cls.within(labels_DHW[box] == value, box, affine)

    @classmethod
    def within(cls, mask: NDArray[np.bool_], box: tuple[slice, ...], affine: NDArray[np.float64]) -> Part:
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


def connected(part: Part, affine: NDArray[np.float64]) -> list[Part]:
    """The connected parts (26-neighbourhood) of a structure, largest first."""
    regions, _ = ndimage.label(part.mask, structure=np.ones((3, 3, 3)))
    found = []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        placed = tuple(slice(o.start + b.start, o.start + b.stop) for o, b in zip(part.box, box, strict=True))
        found.append(Part.within(regions[box] == number, placed, affine))
    return sorted(found, key=lambda one: -one.voxels)


@dataclass(frozen=True)
class Body:
    """What left and right are told by: the mean x and the width of what is in view, RAS+ mm."""

    middle_mm: float
    width_mm: float

    @classmethod
    def of(cls, parts: list[Part], affine: NDArray[np.float64]) -> Body:
        """The body that some structures make."""
        voxels = sum(part.voxels for part in parts)
        spans = [max(part.box[axis].stop for part in parts) - min(part.box[axis].start for part in parts) for axis in range(3)]
        return cls(sum(part.x_mm * part.voxels for part in parts) / voxels, float(np.abs(affine[0, :3]) @ spans))

    def side_of(self, parts: list[Part]) -> Side:
        """Which side of the middle; both where parts lie clearly on either side."""
        sides = {one.x_mm > self.middle_mm for one in parts if abs(one.x_mm - self.middle_mm) > MIDLINE * self.width_mm}
        return "midline" if not sides else "bilateral" if len(sides) == 2 else "right" if True in sides else "left"


def around(labels_DHW: NDArray[np.uint8], part: Part, label_map: dict[int, str]) -> str | None:
    """The labelled normal structure that most of a lesion's rim (one voxel wide) belongs to."""
    grown = tuple(slice(max(e.start - 1, 0), min(e.stop + 1, n)) for e, n in zip(part.box, labels_DHW.shape, strict=True))
    placed = np.zeros([e.stop - e.start for e in grown], dtype=np.bool_)
    placed[tuple(slice(b.start - g.start, b.stop - g.start) for b, g in zip(part.box, grown, strict=True))] = part.mask
    rim = ndimage.binary_dilation(placed) & ~placed
    counts = np.bincount(labels_DHW[grown][rim], minlength=256)
    return most_of(counts, label_map)


def most_of(counts: NDArray[np.integer[Any]], label_map: dict[int, str]) -> str | None:
    """The normal structure with most voxels, by a count for each label value; None where there is none."""
    normal = [value for value, name in label_map.items() if value and not is_lesion(name) and counts[value]]
    return label_map[max(normal, key=lambda value: int(counts[value]))].lower() if normal else None


def located(labels_DHW: NDArray[np.uint8], label_map: dict[int, str], affine: NDArray[np.float64]) -> dict[int, Part]:
    """Label value -> where it is, of the values that the map names."""
    plane_HW = np.bitwise_or.reduce(labels_DHW, axis=0)
    shown = [np.bitwise_or.reduce(labels_DHW, axis=(1, 2)), *(np.bitwise_or.reduce(plane_HW, axis=axis) for axis in (1, 0))]
    if not shown[0].any():
        return {}
    start = [int(np.flatnonzero(one)[0]) for one in shown]
    outline = tuple(slice(first, int(np.flatnonzero(one)[-1]) + 1) for first, one in zip(start, shown, strict=True))
    return {
        value: Part.of(labels_DHW, value, tuple(slice(s + e.start, s + e.stop) for s, e in zip(start, box, strict=True)), affine)
        for value, box in enumerate(ndimage.find_objects(labels_DHW[outline]), start=1)
        if box is not None and value in label_map
    }


def midline_in_view(anatomy: str | None) -> bool:
    """Whether an image of this body part holds the body's middle; of a knee or a breast alone, left and right cannot be told."""
    return anatomy is not None and any(word in anatomy.lower() for word in MIDLINE_ANATOMIES)
