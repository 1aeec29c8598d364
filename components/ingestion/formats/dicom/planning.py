"""Planning of DICOM files: inspect headers, remove copies, split series into volumes, attach segmentations and structure sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydicom import Dataset

from components.ingestion.annotations import rt_structures
from components.ingestion.formats.base import FileHeader, PlannedFile, PlannedSeries
from components.ingestion.formats.dicom.headers import SEGMENTATION, find_rejection, read_frames, read_header
from components.ingestion.formats.dicom.multiframe import is_mosaic
from components.ingestion.formats.dicom.pixels import find_pixel_fault
from components.ingestion.formats.dicom.planned_files import (
    PlannedDicom,
    PlannedFrames,
    PlannedHeaderSidecar,
    PlannedMosaic,
    PlannedStructureSet,
)
from components.ingestion.formats.dicom.series_splitting import Frame, split_series
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan, SourceFolder

ObjectKind = Literal["classic", "mosaic", "enhanced", "segmentation", "structures"]
_COPY = Rejection("duplicate", "the same SOP Instance UID as another file", "remove one of the two")
_MAX_SHOWN_NUMBER = 10**5


@dataclass(frozen=True)
class DicomHeader(FileHeader):
    """Result of inspecting one DICOM file.

    Attributes:
        patient, series, instance, frame_of_reference: Patient ID and UIDs of the header.
        kind: kind of object.
        frames: frames of a classic or an enhanced image.
        referenced_series: UIDs of the series that a structure set was drawn on.
    """

    patient: str = ""
    series: str = ""
    instance: str = ""
    frame_of_reference: str = ""
    kind: ObjectKind = "classic"
    frames: tuple[Frame, ...] = ()
    referenced_series: frozenset[str] = frozenset()


class PlannedVolume(NamedTuple):
    """A series to be ingested, with the header of one of its files."""

    header: DicomHeader
    series: PlannedSeries


def inspect_header(path: Path, format_name: str) -> DicomHeader:
    """Read the header of a DICOM file.

    Raises:
        Exception: errors of pydicom on a damaged header.
    """
    header = read_header(path)
    rejection = find_rejection(header)
    kind = _object_kind(header)
    frames: list[Frame] = []
    if rejection is None and kind in ("classic", "enhanced"):
        frames, rejection = read_frames(header, path)
    is_structure_set = kind == "structures"
    frame_of_reference = str(header.get("FrameOfReferenceUID", ""))
    return DicomHeader(
        path,
        format_name,
        rejection,
        patient=str(header.get("PatientID", "") or ""),
        series=str(header.get("SeriesInstanceUID", "")),
        instance=str(header.get("SOPInstanceUID", "")),
        frame_of_reference=rt_structures.frame_of_reference(header) if is_structure_set else frame_of_reference,
        kind=kind,
        frames=tuple(frames),
        referenced_series=rt_structures.referenced_series(header) if is_structure_set else frozenset(),
    )


def _object_kind(header: Dataset) -> ObjectKind:
    sop_class = header.get("SOPClassUID")
    if sop_class == SEGMENTATION:
        return "segmentation"
    if sop_class == rt_structures.RT_STRUCTURE_SET_UID:
        return "structures"
    if is_mosaic(header):
        return "mosaic"
    return "enhanced" if "PerFrameFunctionalGroupsSequence" in header else "classic"


def plan_files(headers: Sequence[DicomHeader], folder: SourceFolder, plan: Plan) -> None:
    """Add the volumes of DICOM files to the plan, sorted by series name, with their labels."""
    classic: dict[tuple[str, str], list[DicomHeader]] = defaultdict(list)
    labels: list[DicomHeader] = []
    volumes: list[PlannedVolume] = []
    for header in _without_copies(headers, plan):
        if header.kind in ("segmentation", "structures"):
            labels.append(header)
        elif header.kind == "mosaic":
            volumes.append(_plan_mosaic(header, folder))
        elif header.kind == "enhanced":
            volumes += _plan_enhanced(header, folder, plan)
        else:
            classic[header.patient, header.series].append(header)
    for series_headers in classic.values():
        volumes += _plan_classic(series_headers, folder, plan)
    volumes.sort(key=lambda volume: volume.series.series_id)
    for header in labels:
        _attach_label(header, volumes, folder, plan)
    plan.series += [volume.series for volume in volumes]


def _without_copies(headers: Sequence[DicomHeader], plan: Plan) -> Iterator[DicomHeader]:
    """Yield one file of each SOP Instance UID, an intact one where another is damaged; reject the copies."""
    by_instance: dict[str, list[DicomHeader]] = defaultdict(list)
    for header in headers:
        by_instance[header.instance].append(header)
    for copies in by_instance.values():
        chosen = copies[0]
        if len(copies) > 1:
            chosen = next((header for header in copies if _find_fault(header) is None), chosen)
        yield chosen
        for header in copies:
            if header is not chosen:
                plan.reject([header.path], _find_fault(header) or _COPY)


def _find_fault(header: DicomHeader) -> Rejection | None:
    """Return why the pixels of a file cannot be decoded; structure sets have none."""
    return None if header.kind == "structures" else find_pixel_fault(header.path)


def _split_volumes(frames: Iterable[Frame], plan: Plan) -> list[tuple[Frame, ...]]:
    """Split frames into volumes; reject those that form none."""
    volumes, rejected = split_series(frames)
    for group in rejected:
        plan.reject([frame.path for frame in group.frames], Rejection("geometry", group.reason, group.remedy))
    return volumes


def _plan_mosaic(header: DicomHeader, folder: SourceFolder) -> PlannedVolume:
    target = f"{folder.stem(folder.pseudonyms.patient(header.patient), header.instance)}.nii"
    return _plan_converted(header, PlannedMosaic(header.path, target, "image"), header.instance, 0, folder)


def _plan_enhanced(header: DicomHeader, folder: SourceFolder, plan: Plan) -> list[PlannedVolume]:
    """Plan the volumes of an enhanced file."""
    volumes = _split_volumes(header.frames, plan)
    planned = []
    for volume in volumes:
        name = header.instance if len(volumes) == 1 else f"{header.instance}\0{volume[0].index}"
        target = f"{folder.stem(folder.pseudonyms.patient(header.patient), name)}.nii"
        image = PlannedFrames(header.path, target, "image", tuple(frame.index for frame in volume))
        planned.append(_plan_converted(header, image, name, volume[0].index, folder))
    return planned


def _plan_converted(header: DicomHeader, image: PlannedFile, name: str, frame: int, folder: SourceFolder) -> PlannedVolume:
    """Plan a volume that becomes NIfTI with a sidecar.

    Args:
        name: name of the series before it becomes a pseudonym.
        frame: frame whose header fields describe the volume.
    """
    stem = image.target.removesuffix(".nii")
    files = [
        image,
        PlannedHeaderSidecar(header.path, f"{stem}.json", "annotation", frame),
        *folder.plan_tables(folder.relative(header.path), header.patient, stem),
    ]
    patient = folder.pseudonyms.patient(header.patient)
    return PlannedVolume(header, PlannedSeries(patient, folder.pseudonyms.series(name), "nifti", files))


def _plan_classic(headers: list[DicomHeader], folder: SourceFolder, plan: Plan) -> list[PlannedVolume]:
    """Plan the volumes of a series of single-frame files."""
    by_path = {header.path: header for header in headers}
    volumes = _split_volumes((frame for header in headers for frame in header.frames), plan)
    planned = []
    for volume in volumes:
        first = by_path[volume[0].path]
        patient = folder.pseudonyms.patient(first.patient)
        name = first.series if len(volumes) == 1 else f"{first.series}\0{first.instance}"
        stem = folder.stem(patient, name)
        slices = [PlannedDicom(frame.path, _slice_target(frame, by_path, stem, folder), "image") for frame in volume]
        files: list[PlannedFile] = sorted(slices, key=lambda file: file.target)
        relative, grid = folder.relative(first.path), (len(volume), *volume[0].shape)
        files += folder.plan_tables(relative, first.patient, stem)
        files += folder.plan_boxes(relative, first.patient, stem, grid)
        planned.append(PlannedVolume(first, PlannedSeries(patient, folder.pseudonyms.series(name), "dicom", files)))
    return planned


def _slice_target(frame: Frame, by_path: dict[Path, DicomHeader], stem: str, folder: SourceFolder) -> str:
    """Return the target of a slice: its instance number, which sorts, and six digits of its pseudonym."""
    pseudonym = folder.pseudonyms.series(by_path[frame.path].instance)
    number = frame.number if 0 <= frame.number < _MAX_SHOWN_NUMBER else 0
    return f"{stem}/{number:05d}-{pseudonym[1:7]}.dcm"


def _attach_label(header: DicomHeader, volumes: list[PlannedVolume], folder: SourceFolder, plan: Plan) -> None:
    """Add a segmentation to every volume of its patient in its frame of reference, a structure set to those of them that belong to
    the series it refers to, if it does; grids are compared later.
    """
    patient = folder.pseudonyms.patient(header.patient)
    stem = folder.stem(patient, header.instance)
    file: PlannedFile
    if header.kind == "segmentation":
        noun, file = "a segmentation", PlannedDicom(header.path, f"{stem}.seg.dcm", "label")
    else:
        noun, file = "a structure set", PlannedStructureSet(header.path, f"{stem}.rtstruct.dcm", "label")
    candidates = [volume for volume in volumes if volume.series.patient == patient]
    if header.referenced_series:
        candidates = [volume for volume in candidates if volume.header.series in header.referenced_series]
    labeled = [volume for volume in candidates if volume.header.frame_of_reference == header.frame_of_reference]
    for volume in labeled:
        volume.series.files.append(file)
    if not labeled:
        is_other_frame = candidates and header.referenced_series
        fault = "in another frame of reference than its image" if is_other_frame else "of no image here"
        plan.reject([header.path], Rejection("label", f"{noun} {fault}", "give the images that it was drawn on"))
