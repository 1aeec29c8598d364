"""DICOM RT Structure Sets (PS3.3 A.19, C.8.8.6): outlines in patient coordinates, as labels of the images they were drawn on.

A pixel belongs to a structure if its centre is within the structure's outlines of its slice, or on one of them. Within is even-odd:
an outline inside of another is a hole, whether it is drawn on its own or joined to the outer one by a channel ("keyhole").
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.quarantine import Rejection, UnsupportedInput

STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_OFF = 0.1
"""Share of the step between slices by which an outline may lie off its slice: headers round."""
_DECIMALS = 4
"""Of a pixel: what was drawn through the centre of one must be on it, whatever a matrix and its inverse leave over."""
_MOST_WORK = 10**10
"""Points of outlines times pixels around them; more takes minutes."""
_AGAIN = "export the structures on the slices of this image"
Outline = NDArray[np.float64]
"""(points, 3), index (d, h, w) of a volume."""


def frame_of_reference(header: Dataset) -> str:
    """UID of the coordinates that the outlines are in; "" where none is named."""
    referenced = [one.get("FrameOfReferenceUID") for one in header.get("ReferencedFrameOfReferenceSequence") or ()]
    return next((str(one) for one in (*_frames(header), *referenced, header.get("FrameOfReferenceUID")) if one), "")


def _frames(header: Dataset) -> list[str]:
    """UIDs of the coordinates that single structures are in."""
    named = (one.get("ReferencedFrameOfReferenceUID") for one in header.get("StructureSetROISequence") or ())
    return sorted({str(one) for one in named if one})


def referenced_series(header: Dataset) -> frozenset[str]:
    """UIDs of the series that the outlines were drawn on; empty where none is named."""
    return frozenset(
        str(series.SeriesInstanceUID)
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
        if series.get("SeriesInstanceUID")
    )


def refusal(header: Dataset) -> Rejection | None:
    """Why a structure set can be the labels of no image; None where nothing in itself speaks against it."""
    frames = _frames(header)
    if len(frames) > 1:
        return Rejection(
            "label", f"structures in {len(frames)} frames of reference", "export a structure set for each image by itself"
        )
    if not header.get("StructureSetROISequence") or not header.get("ROIContourSequence"):
        return Rejection("label", "a structure set without outlines", "export it again with its outlines")
    return None


def without(structures: Dataset, left_out: Iterable[str]) -> Dataset:
    """A structure set without those whose names match one of the globs (lower case)."""
    named = structures.get("StructureSetROISequence") or ()
    gone = {int(one.ROINumber) for one in named if any(fnmatch.fnmatchcase(_name(one), pattern) for pattern in left_out)}
    structures.StructureSetROISequence = [one for one in named if int(one.ROINumber) not in gone]
    outlines = structures.get("ROIContourSequence") or ()
    structures.ROIContourSequence = [one for one in outlines if int(one.ReferencedROINumber) not in gone]
    return structures


def _name(structure: Dataset) -> str:
    return str(structure.get("ROIName") or "").strip().lower()


def read_structures(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], label_map: dict[int, str]
) -> NDArray[np.uint8]:
    """Labels (D, H, W) on the grid of a volume, structures by their name in the card's label map.

    Args:
        affine: of the volume, index (d, h, w, 1) -> RAS+ mm.

    Raises:
        UnsupportedInput: a structure that the card does not name, outlines that are not closed, lie off the slices or beyond the
            image, or structures that overlap.
    """
    to_index = np.asarray(np.linalg.inv(LPS_TO_RAS @ affine), dtype=np.float64)
    found = _outlines(pydicom.dcmread(path), to_index, label_map, path.name)
    every = [outline for outlines in found.values() for outline in outlines]
    if not every:
        raise UnsupportedInput(
            "label", "no outline of a structure in the card's label map", where=path.name, remedy="add one there"
        )
    across = int(np.max([np.ptp(outline, axis=0) for outline in every], axis=0).argmin())
    _check_places(every, across, shape, path.name)
    labels, edges = np.zeros(shape, dtype=np.uint8), {}
    for value, outlines in sorted(found.items()):
        inside, edges[value] = _filled(outlines, across, shape)
        if labels[inside].any():
            raise UnsupportedInput(
                "label", "structures that overlap", where=path.name, remedy="leave one out: layout.ignored_structures"
            )
        labels[inside] = value
    for value, edge in edges.items():  # a pixel on the outlines of two neighbours is no overlap
        labels[edge & (labels == 0)] = value
    return labels


def _outlines(dataset: Dataset, to_index: NDArray[np.float64], label_map: dict[int, str], name: str) -> dict[int, list[Outline]]:
    """Label value -> the outlines of its structure; patient coordinates (LPS+ mm) become indices."""
    by_name = {structure.lower(): value for value, structure in label_map.items()}
    names = {int(one.ROINumber): _name(one) for one in dataset.get("StructureSetROISequence") or ()}
    found: dict[int, list[Outline]] = {}
    for one in dataset.get("ROIContourSequence") or ():
        contours = one.get("ContourSequence") or ()
        number = int(one.ReferencedROINumber)
        if contours and names.get(number) not in by_name:
            raise UnsupportedInput(
                "label",
                f"structure {number}'s name is not in the card's label map",
                where=name,
                remedy="add it there, or to layout.ignored_structures",
            )
        for contour in contours:
            if contour.get("ContourGeometricType") not in _CLOSED:
                raise UnsupportedInput(
                    "label",
                    f"structure {number} has an outline that is not closed",
                    where=name,
                    remedy="export closed outlines (CLOSED_PLANAR), or leave it out: layout.ignored_structures",
                )
            found.setdefault(by_name[names[number]], []).append(_indices(contour, to_index, name))
    return found


def _indices(contour: Dataset, to_index: NDArray[np.float64], name: str) -> Outline:
    points = np.asarray(contour.get("ContourData") or (), dtype=np.float64)
    if points.size == 0 or points.size % 3 or not np.isfinite(points).all():
        raise UnsupportedInput("label", "an outline whose points are no places", where=name, remedy="export the structures again")
    return np.round(points.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3], _DECIMALS)


def _check_places(outlines: Sequence[Outline], across: int, shape: tuple[int, ...], name: str) -> None:
    """Refuse outlines off the slices or beyond the image, and more than can be filled in reasonable time.

    Args:
        across: the axis that they are drawn across.
    """
    off = max(float(np.abs(outline[:, across] - np.rint(outline[:, across].mean())).max()) for outline in outlines)
    if off > _OFF:
        raise UnsupportedInput("label", f"outlines that lie on no slice, {off:.2f} of a step off", where=name, remedy=_AGAIN)
    lowest = np.min([outline.min(axis=0) for outline in outlines], axis=0)
    highest = np.max([outline.max(axis=0) for outline in outlines], axis=0)
    if (lowest < -1).any() or (highest > np.array(shape)).any():
        raise UnsupportedInput("label", "outlines beyond the image", where=name, remedy=_AGAIN)
    plane = [axis for axis in range(3) if axis != across]
    work = sum(len(outline) * float(np.prod(np.ptp(outline, axis=0)[plane] + 1)) for outline in outlines)
    if work > _MOST_WORK:
        raise UnsupportedInput(
            "label", "outlines of too many points", where=name, remedy="export them with a point or two for each pixel"
        )


def _filled(outlines: Sequence[Outline], across: int, shape: tuple[int, ...]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The pixels (D, H, W) whose centres are within an odd number of outlines, and those whose centres are on one."""
    inside, edge = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    slices = np.moveaxis(inside, across, 0), np.moveaxis(edge, across, 0)
    for outline in outlines:
        place = int(np.rint(outline[:, across].mean()))
        if 0 <= place < shape[across]:
            window, kinds = _kinds(np.delete(outline, across, axis=1), slices[0].shape[1:])
            slices[0][place][window] ^= kinds == 1
            slices[1][place][window] |= kinds > 1
    return inside, edge


def _kinds(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], NDArray[Any]]:
    """The part of a slice that a polygon reaches, and its pixels: 0 outside, 1 inside, more on the line."""
    from skimage.measure import grid_points_in_poly

    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, shape)
    size = np.maximum(high - low, 0)
    return tuple(map(slice, low, low + size)), grid_points_in_poly(tuple(size), polygon - low, binarize=False)
