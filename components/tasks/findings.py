"""Findings on an image: one source for boxes, their names, p(yes) and reports, the probabilities of known structures.

Shape letters: H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.curation.measure.regions import split_lesions
from components.curation.measure.volume_facts import normalize_box, normalize_volume_box
from components.curation.text.structure_names import lesion_kinds
from components.tasks.base import Image
from model_core.boxes import GRID, TextBox, VolumeBox

THRESHOLD = 0.3
"""Probability from which a pixel of the mask belongs to a finding."""
MINIMUM_PIXELS, CERTAIN = 12, 0.3
"""Pixels of the network's grid, and largest probability of a known finding, from which a part of the mask is a finding.

Chosen with :data:`THRESHOLD` on slices of validation patients (docs/LOG.md).
"""
MINIMUM_PIXELS_IN_VOLUMES = 8
"""The same number for a slice of a volume of several, where a part has to continue in a neighboring slice.

Chosen on volumes of validation patients (docs/LOG.md).
"""
EVIDENCE_PIXELS = 12
"""Pixels of the network's grid whose mean probability, where it is highest, is the evidence: about the smallest lesion."""
ANY = "lesion"
"""Word of a question that asks for findings of every kind."""


@dataclass(frozen=True)
class Outline:
    """The box of a part of a mask, in pixels (half-open), the highest probability in it, and its kind."""

    row0: int
    col0: int
    row1: int
    col1: int
    confidence: float
    kind: str = ""

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """Edges in the order of a box."""
        return self.row0, self.col0, self.row1, self.col1

    def normalize(self, label: str, size: tuple[int, ...]) -> TextBox:
        """Return the box in the coordinates of the text, given the (H, W) of the image."""
        box = normalize_box(*self.edges, size[0], size[1], label)
        return TextBox(label, box.row0, box.col0, box.row1, box.col1)


@dataclass(frozen=True)
class VolumeOutline:
    """The box of a finding of a volume, in voxels (half-open), the highest probability in it, and its kind."""

    slices: tuple[int, int]
    rows: tuple[int, int]
    columns: tuple[int, int]
    confidence: float
    kind: str

    @classmethod
    def of_box(cls, box: VolumeBox, shape: tuple[int, int, int]) -> VolumeOutline:
        """Return the outline of a box in the coordinates of the text, at least one voxel along each axis, with confidence 1."""

        def edges(low: int, high: int, size: int) -> tuple[int, int]:
            first = min(round(low * size / GRID), size - 1)
            return first, max(round(high * size / GRID), first + 1)

        depth, height, width = shape
        rows, columns = edges(box.row0, box.row1, height), edges(box.col0, box.col1, width)
        return cls(edges(box.slice0, box.slice1, depth), rows, columns, 1.0, box.label)

    @property
    def voxels(self) -> tuple[slice, slice, slice]:
        """The voxels inside."""
        return slice(*self.slices), slice(*self.rows), slice(*self.columns)

    @property
    def center(self) -> tuple[int, int, int]:
        """The voxel in the middle."""
        depth, row, column = ((first + stop - 1) // 2 for first, stop in (self.slices, self.rows, self.columns))
        return depth, row, column

    def normalize(self, shape: tuple[int, ...]) -> VolumeBox:
        """Return the box in the coordinates of the text, given the (D, H, W) of the volume."""
        box = normalize_volume_box(tuple(slice(*edge) for edge in (self.slices, self.rows, self.columns)), shape, self.kind)
        return VolumeBox(box.label, box.row0, box.col0, box.row1, box.col1, box.slice0, box.slice1)


def asked_kinds(question: str, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return kind -> names of the findings that a question asks about; none if it mentions no known finding.

    The kinds are those of curated boxes: a tumor and its edema are one. A question about a lesion asks about every kind.
    """
    numbered = dict(enumerate(names, start=1))
    kinds = {kind: [numbered[value] for value in values] for kind, values in lesion_kinds(numbered).items()}
    lowered = question.lower()
    if ANY in lowered:
        return kinds
    return {kind: members for kind, members in kinds.items() if any(name in lowered for name in (kind, *members))}


def sum_kinds(probabilities: Mapping[str, NDArray[np.float32]], kinds: Mapping[str, list[str]]) -> dict[str, NDArray[np.float32]]:
    """Return kind -> probability that a pixel belongs to a finding of this kind."""
    return {kind: np.sum([probabilities[name] for name in members], axis=0) for kind, members in kinds.items()}


def evidence(probability_HW: Image, pixel_area: float = 1) -> float:
    """Return the mean of the highest probabilities of an image, in the area of :data:`EVIDENCE_PIXELS` pixels.

    Args:
        probability_HW: of a finding.
        pixel_area: pixels of the image for each pixel of the network's grid.
    """
    values = probability_HW.ravel()
    count = min(max(round(EVIDENCE_PIXELS * pixel_area), 1), len(values))
    return float(np.partition(values, -count)[-count:].mean())


def find_outlines(
    mask_HW: Image,
    by_kind: Mapping[str, Image],
    spacing_mm: Sequence[float],
    smallest: float = MINIMUM_PIXELS,
    certain: float = CERTAIN,
) -> list[Outline]:
    """Return the named boxes of the findings on an image: parts of a mask, named by the kind with most of a part.

    Args:
        mask_HW: probability of a finding, which decides the edges.
        by_kind: kind -> probability (H, W), which decides whether a part counts, and its name.
        spacing_mm: between rows and between columns.
        smallest: number of pixels from which a part counts.
        certain: probability of a kind, or of several together, that some pixel of a part must have.
    """
    return [outline for outline, _ in find_parts(mask_HW, by_kind, spacing_mm, smallest, certain)]


def find_parts(
    mask_HW: Image,
    by_kind: Mapping[str, Image],
    spacing_mm: Sequence[float],
    smallest: float = MINIMUM_PIXELS,
    certain: float = CERTAIN,
) -> list[tuple[Outline, NDArray[np.bool_]]]:
    """Return the findings of :func:`find_outlines` with their pixels (H, W); parts are counted as in label maps."""
    if not by_kind:
        return []
    stacked = np.stack(list(by_kind.values()))
    total = stacked.sum(0)
    found = []
    for part in split_lesions(mask_HW > THRESHOLD, spacing_mm):
        rows, columns = part.box
        confidence = float(total[part.box][part.inside].max())
        if not part.is_speck and part.inside.sum() >= smallest and confidence >= certain:
            inside = np.zeros(mask_HW.shape, np.bool_)
            inside[part.box] = part.inside
            kind = _strongest(list(by_kind), stacked[:, inside])
            found.append((Outline(rows.start, columns.start, rows.stop, columns.stop, confidence, kind), inside))
    return sorted(found, key=lambda one: one[0].edges)


def find_volume_outlines(
    mask_DHW: NDArray[np.float32],
    by_kind: Mapping[str, NDArray[np.float32]],
    spacing_mm: Sequence[float],
    pixel_area: float = 1,
) -> list[VolumeOutline]:
    """Return the named boxes of the findings of a volume, as :func:`find_volume_parts`."""
    return [outline for outline, _ in find_volume_parts(mask_DHW, by_kind, spacing_mm, pixel_area)]


def find_volume_parts(
    mask_DHW: NDArray[np.float32],
    by_kind: Mapping[str, NDArray[np.float32]],
    spacing_mm: Sequence[float],
    pixel_area: float = 1,
) -> list[tuple[VolumeOutline, NDArray[np.bool_]]]:
    """Return the findings of a volume with their voxels (D, H, W): the parts that single slices show, joined over slices.

    Parts are counted as in label maps (:func:`components.curation.measure.regions.split_lesions`), and named by the kind with most
    of all voxels: a single slice of a tumor often looks like a lesion. What does not continue in a neighboring slice is left out
    if there is any; such parts may be smaller than those of a single slice.

    Args:
        mask_DHW: probability of a finding.
        by_kind: kind -> probability (D, H, W).
        spacing_mm: between slices, rows and columns.
        pixel_area: pixels of a slice for each pixel of the network's grid.
    """
    if not by_kind:
        return []
    stacked, shown = np.stack(list(by_kind.values())), np.zeros(mask_DHW.shape, np.bool_)
    smallest = pixel_area * (MINIMUM_PIXELS_IN_VOLUMES if len(shown) > 1 else MINIMUM_PIXELS)
    for index, mask_HW in enumerate(mask_DHW):
        of_slice = {kind: values[index] for kind, values in by_kind.items()}
        for _, inside in find_parts(mask_HW, of_slice, spacing_mm[1:], smallest):
            shown[index] |= inside
    if len(shown) > 1:
        pieces, _ = ndimage.label(shown, structure=np.ones((3, 3, 3)))
        for number, box in enumerate(ndimage.find_objects(pieces), start=1):
            if box[0].stop - box[0].start == 1:
                shown[box] &= pieces[box] != number
    found = []
    for part in split_lesions(shown, spacing_mm):
        voxels = np.zeros(mask_DHW.shape, np.bool_)
        voxels[part.box] = part.inside
        slices, rows, columns = ((side.start, side.stop) for side in part.box)
        confidence, kind = float(stacked[:, voxels].sum(0).max()), _strongest(list(by_kind), stacked[:, voxels])
        found.append((VolumeOutline(slices, rows, columns, confidence, kind), voxels))
    return found


def edges_by_slice(voxels_DHW: NDArray[np.bool_]) -> list[tuple[int, tuple[int, int, int, int]]]:
    """Return the slices that show a finding, with its first and last (half-open) row and column: (row0, column0, row1, column1)."""
    found = []
    for index in np.flatnonzero(voxels_DHW.any((1, 2))):
        rows, columns = (np.flatnonzero(voxels_DHW[index].any(axis)) for axis in (1, 0))
        found.append((int(index), (int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)))
    return found


def _strongest(kinds: list[str], probability_KV: NDArray[np.float32]) -> str:
    """Return the kind with most of the voxels V of a part."""
    return kinds[int(probability_KV.sum(1).argmax())]
