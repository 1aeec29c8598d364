"""Headers of DICOM objects, as planning needs them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydicom import Dataset

from components.ingestion.annotations import rt_structures
from components.ingestion.formats.base import FileHeader
from components.ingestion.formats.dicom.concatenations import Part, part_of
from components.ingestion.formats.dicom.frames import Frame
from components.ingestion.formats.dicom.headers import SEGMENTATION_CLASSES, find_rejection, read_frames
from components.ingestion.formats.dicom.multiframe import find_mosaic_rejection, is_mosaic, says_mosaic
from components.ingestion.formats.dicom.reading import read_header_to_pixels

ObjectKind = Literal["classic", "mosaic", "enhanced", "segmentation", "structures"]


@dataclass(frozen=True)
class DicomHeader(FileHeader):
    """Result of inspecting one DICOM file.

    Attributes:
        patient, study, series, instance, frame_of_reference: Patient ID and UIDs of the header.
        kind: kind of object.
        frames: frames of a classic or an enhanced image.
        referenced_series: UIDs of the series that a structure set was drawn on.
        says_mosaic: whether the image type of a classic or an enhanced image names a mosaic.
        points: contours of a structure set that are single points.
        part: place of an enhanced image within its concatenation; None for a whole image.
    """

    patient: str = ""
    study: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    kind: ObjectKind = "classic"
    frames: tuple[Frame, ...] = ()
    referenced_series: frozenset[str] = frozenset()
    says_mosaic: bool = False
    points: int = 0
    part: Part | None = None


def inspect_header(path: Path, format_name: str) -> DicomHeader:
    """Read the header of a DICOM file.

    Raises:
        Exception: errors of pydicom on a damaged header.
    """
    header, has_pixels = read_header_to_pixels(path)
    rejection = find_rejection(header, has_pixels)
    kind = _object_kind(header)
    frames: list[Frame] = []
    if rejection is None and kind in ("classic", "enhanced"):
        frames, rejection = read_frames(header, path)
    elif rejection is None and kind == "mosaic":
        rejection = find_mosaic_rejection(header)
    is_structure_set = kind == "structures"
    frame_of_reference = str(header.get("FrameOfReferenceUID", ""))
    return DicomHeader(
        path,
        format_name,
        rejection,
        patient=str(header.get("PatientID", "") or "").strip(),
        study=str(header.get("StudyInstanceUID", "") or ""),
        series=str(header.get("SeriesInstanceUID", "")),
        instance=str(header.get("SOPInstanceUID", "")),
        frame_of_reference=rt_structures.frame_of_reference(header) if is_structure_set else frame_of_reference,
        kind=kind,
        frames=tuple(frames),
        referenced_series=rt_structures.referenced_series(header) if is_structure_set else frozenset(),
        says_mosaic=kind in ("classic", "enhanced") and says_mosaic(header),
        points=rt_structures.count_points(header) if is_structure_set else 0,
        part=part_of(header) if kind == "enhanced" else None,
    )


def _object_kind(header: Dataset) -> ObjectKind:
    sop_class = header.get("SOPClassUID")
    if sop_class in SEGMENTATION_CLASSES:
        return "segmentation"
    if sop_class == rt_structures.RT_STRUCTURE_SET_UID:
        return "structures"
    if is_mosaic(header):
        return "mosaic"
    return "enhanced" if "PerFrameFunctionalGroupsSequence" in header else "classic"
