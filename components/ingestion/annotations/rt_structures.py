"""DICOM RT Structure Sets (PS3.3 A.19, C.8.8.6): rasterize contours in patient coordinates on the grid of the contoured image.

A pixel belongs to a structure if its center is inside the contours of the structure on its slice, or on a contour. Inside follows
the even-odd rule: a contour inside another one is a hole, whether separate or joined to the outer one by a channel ("keyhole").
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

RT_STRUCTURE_SET_UID = "1.2.840.10008.5.1.4.1.1.481.3"
_CLOSED, _POINT = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "INTERPOLATED_PLANAR"}), "POINT"
"""Contour geometric types of outlines (some tools write INTERPOLATED_PLANAR for those between drawn ones), and of markers."""
_MAX_OFFSET = 0.1
"""Maximum distance of a contour from its slice, as a fraction of the slice spacing: headers contain rounded numbers."""
_DECIMALS = 4
"""Decimals of a pixel index: a contour through a pixel center must stay on it despite rounding in a matrix and its inverse."""
_MAX_WORK = 10**10
"""Maximum of contour points times pixels in their bounding boxes; more takes minutes."""
_EXPORT_REMEDY = "export the structures on the slices of this image"
Contour = NDArray[np.float64]
"""Points of a contour (N, 3) as index (d, h, w) of a volume."""


def frame_of_reference(header: Dataset) -> str:
    """Return the UID of the frame of reference of the contours; "" if there is none."""
    referenced = [frame.get("FrameOfReferenceUID") for frame in header.get("ReferencedFrameOfReferenceSequence") or ()]
    candidates = (*_structure_frames(header), *referenced, header.get("FrameOfReferenceUID"))
    return next((str(uid) for uid in candidates if uid), "")


def _structure_frames(header: Dataset) -> list[str]:
    """Return the distinct UIDs of the frames of reference of the structures."""
    uids = (structure.get("ReferencedFrameOfReferenceUID") for structure in header.get("StructureSetROISequence") or ())
    return sorted({str(uid) for uid in uids if uid})


def referenced_series(header: Dataset) -> frozenset[str]:
    """Return the UIDs of the series that were contoured; empty if none is given."""
    return frozenset(
        str(series.SeriesInstanceUID)
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ()
        for study in frame.get("RTReferencedStudySequence") or ()
        for series in study.get("RTReferencedSeriesSequence") or ()
        if series.get("SeriesInstanceUID")
    )


def find_rejection(header: Dataset) -> Rejection | None:
    """Return the reason why a structure set cannot label any image; None if its header is usable."""
    frames = _structure_frames(header)
    if len(frames) > 1:
        return Rejection(
            "label", f"structures in {len(frames)} frames of reference", "export a separate structure set for each image"
        )
    if not header.get("StructureSetROISequence") or not header.get("ROIContourSequence"):
        return Rejection("label", "a structure set without contours", "export it again with its contours")
    return None


def count_points(header: Dataset) -> int:
    """Return the number of contours that are single points: they label nothing."""
    contours = (contour for item in header.get("ROIContourSequence") or () for contour in item.get("ContourSequence") or ())
    return sum(contour.get("ContourGeometricType") == _POINT for contour in contours)


def remove_structures(dataset: Dataset, patterns: Iterable[str]) -> Dataset:
    """Remove the structures whose names match one of the globs (lower case) from a structure set, in place; return it."""
    patterns = tuple(patterns)
    structures = dataset.get("StructureSetROISequence") or ()
    removed = {
        int(structure.ROINumber)
        for structure in structures
        if any(fnmatch.fnmatchcase(_structure_name(structure), pattern) for pattern in patterns)
    }
    dataset.StructureSetROISequence = [structure for structure in structures if int(structure.ROINumber) not in removed]
    contours = dataset.get("ROIContourSequence") or ()
    dataset.ROIContourSequence = [item for item in contours if int(item.ReferencedROINumber) not in removed]
    return dataset


def _structure_name(structure: Dataset) -> str:
    return str(structure.get("ROIName") or "").strip().lower()


def read_structures(
    path: Path, affine: NDArray[np.float64], shape: tuple[int, ...], label_map: dict[int, str]
) -> NDArray[np.uint8]:
    """Return the structures of a structure set as labels (D, H, W) on the grid of a volume.

    Args:
        affine: (4, 4), maps index (d, h, w, 1) of the volume to RAS+ mm.
        shape: (D, H, W) of the volume.
        label_map: label value -> name of a structure.

    Raises:
        UnsupportedInput: a structure is not in the label map, contours are open, off the slices or beyond the image, or
            structures overlap.
    """
    to_index = np.asarray(np.linalg.inv(LPS_TO_RAS @ affine), dtype=np.float64)
    contours_by_label = _collect_contours(pydicom.dcmread(path), to_index, label_map, path.name)
    contours = [contour for structure in contours_by_label.values() for contour in structure]
    if not contours:
        raise UnsupportedInput(
            "label", "no structure with contours is in the label map of the card", where=path.name, remedy="add one to label_map"
        )
    normal_axis = int(np.max([np.ptp(contour, axis=0) for contour in contours], axis=0).argmin())
    _check_positions(contours, normal_axis, shape, path.name)
    labels, edges = np.zeros(shape, dtype=np.uint8), {}
    for value, structure in sorted(contours_by_label.items()):
        inside, edges[value] = _rasterize(structure, normal_axis, shape)
        if labels[inside].any():
            raise UnsupportedInput(
                "label", "structures overlap", where=path.name, remedy="exclude one of them: layout.ignored_structures"
            )
        labels[inside] = value
    for value, edge in edges.items():  # a pixel on the contours of two adjacent structures is not an overlap
        labels[edge & (labels == 0)] = value
    return labels


def _collect_contours(
    dataset: Dataset, to_index: NDArray[np.float64], label_map: dict[int, str], file_name: str
) -> dict[int, list[Contour]]:
    """Return label value -> contours of its structure as volume indices.

    Args:
        to_index: (4, 4), maps patient coordinates (LPS+ mm) to index (d, h, w, 1).
    """
    value_by_name = {name.lower(): value for value, name in label_map.items()}
    names = {int(structure.ROINumber): _structure_name(structure) for structure in dataset.get("StructureSetROISequence") or ()}
    contours_by_label: dict[int, list[Contour]] = {}
    for item in dataset.get("ROIContourSequence") or ():
        contours = item.get("ContourSequence") or ()
        number = int(item.ReferencedROINumber)
        if contours and names.get(number) not in value_by_name:
            raise UnsupportedInput(
                "label",
                f"the name of structure {number} is not in the label map of the card",
                where=file_name,
                remedy="add it there, or to layout.ignored_structures",
            )
        for contour in contours:
            if contour.get("ContourGeometricType") == _POINT:
                continue  # a marker, which encloses nothing
            if contour.get("ContourGeometricType") not in _CLOSED:
                raise UnsupportedInput(
                    "label",
                    f"structure {number} has an open contour",
                    where=file_name,
                    remedy="export closed contours (CLOSED_PLANAR), or exclude it: layout.ignored_structures",
                )
            value = value_by_name[names[number]]
            contours_by_label.setdefault(value, []).append(_read_points(contour, to_index, file_name))
    return contours_by_label


def _read_points(contour: Dataset, to_index: NDArray[np.float64], file_name: str) -> Contour:
    points = np.asarray(contour.get("ContourData") or (), dtype=np.float64)
    if points.size == 0 or points.size % 3 or not np.isfinite(points).all():
        raise UnsupportedInput(
            "label", "the points of a contour are not coordinates", where=file_name, remedy="export the structures again"
        )
    return np.round(points.reshape(-1, 3) @ to_index[:3, :3].T + to_index[:3, 3], _DECIMALS)


def _check_positions(contours: Sequence[Contour], normal_axis: int, shape: tuple[int, ...], file_name: str) -> None:
    """Reject contours off the slices, beyond the image, or with too many points to rasterize in reasonable time.

    Args:
        normal_axis: axis of the volume perpendicular to the contours.
    """
    offset = max(float(np.abs(contour[:, normal_axis] - np.rint(contour[:, normal_axis].mean())).max()) for contour in contours)
    if offset > _MAX_OFFSET:
        raise UnsupportedInput(
            "label", f"contours are {offset:.2f} of the slice spacing off their slice", where=file_name, remedy=_EXPORT_REMEDY
        )
    lowest = np.min([contour.min(axis=0) for contour in contours], axis=0)
    highest = np.max([contour.max(axis=0) for contour in contours], axis=0)
    if (lowest < -1).any() or (highest > np.array(shape)).any():
        raise UnsupportedInput("label", "contours beyond the image", where=file_name, remedy=_EXPORT_REMEDY)
    plane_axes = [axis for axis in range(3) if axis != normal_axis]
    work = sum(len(contour) * float(np.prod(np.ptp(contour, axis=0)[plane_axes] + 1)) for contour in contours)
    if work > _MAX_WORK:
        raise UnsupportedInput(
            "label", "contours with too many points", where=file_name, remedy="export them with one or two points per pixel"
        )


def _rasterize(
    contours: Sequence[Contour], normal_axis: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return two masks (D, H, W): pixel centers inside an odd number of contours, and pixel centers on a contour."""
    inside, edge = np.zeros(shape, dtype=bool), np.zeros(shape, dtype=bool)
    inside_slices, edge_slices = np.moveaxis(inside, normal_axis, 0), np.moveaxis(edge, normal_axis, 0)
    for contour in contours:
        index = int(np.rint(contour[:, normal_axis].mean()))
        if 0 <= index < shape[normal_axis]:
            window, position = _classify_pixels(np.delete(contour, normal_axis, axis=1), inside_slices.shape[1:])
            inside_slices[index][window] ^= position == 1
            edge_slices[index][window] |= position > 1
    return inside, edge


def _classify_pixels(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], NDArray[Any]]:
    """Return the bounding window of a polygon in a slice, and for its pixels 0 (outside), 1 (inside) or more (on the line)."""
    from skimage.measure import grid_points_in_poly

    low = np.maximum(np.floor(polygon.min(axis=0)).astype(int), 0)
    high = np.minimum(np.ceil(polygon.max(axis=0)).astype(int) + 1, shape)
    size = np.maximum(high - low, 0)
    return tuple(map(slice, low, low + size)), grid_points_in_poly(tuple(size), polygon - low, binarize=False)
