"""Planning of DICOM files: identify patients, remove copies, split series into volumes, attach segmentations and structure sets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from components.ingestion.formats.base import PlannedFile, PlannedSeries
from components.ingestion.formats.dicom import concatenations
from components.ingestion.formats.dicom.frames import Frame
from components.ingestion.formats.dicom.multiframe import NO_MOSAIC_HEADER
from components.ingestion.formats.dicom.object_headers import DicomHeader
from components.ingestion.formats.dicom.patients import identify_patients, table_key
from components.ingestion.formats.dicom.pixels import find_pixel_fault
from components.ingestion.formats.dicom.planned_files import (
    PlannedDicom,
    PlannedFrames,
    PlannedHeaderSidecar,
    PlannedMosaic,
    PlannedStructureSet,
)
from components.ingestion.formats.dicom.series_splitting import find_spacing_notice, split_series
from components.ingestion.formats.dicom.shared_uids import qualify_shared_uids
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan, SourceFolder

_COPY = Rejection("duplicate", "the same SOP Instance UID as another file", "remove one of the two")
_SHARED_UID = Rejection(
    "duplicate",
    "one SOP Instance UID for images at different positions: which of them others refer to is unknown",
    "export or anonymize the series again, so that each image has a UID of its own",
)
_SAME_PLACE_MM = 0.1
"""Copies of an image may differ by the rounding of their positions; slices are further apart."""
_MAX_SHOWN_NUMBER = 10**5


class PlannedVolume(NamedTuple):
    """A series to be ingested, with the header of one of its files."""

    header: DicomHeader
    series: PlannedSeries


def plan_files(headers: Sequence[DicomHeader], folder: SourceFolder, plan: Plan) -> None:
    """Add the volumes of DICOM files to the plan, sorted by series name, with their labels."""
    classic: dict[tuple[str, str], list[DicomHeader]] = defaultdict(list)
    enhanced: dict[tuple[str, str, str], list[DicomHeader]] = defaultdict(list)
    labels: list[DicomHeader] = []
    volumes: list[PlannedVolume] = []
    for header in _without_copies(qualify_shared_uids(identify_patients(headers, folder, plan), plan), plan):
        if header.kind in ("segmentation", "structures"):
            labels.append(header)
        elif header.kind == "mosaic":
            volumes.append(_plan_mosaic(header, folder))
        elif header.kind == "enhanced":
            enhanced[header.patient, header.series, header.part.uid if header.part else header.instance].append(header)
        else:
            classic[header.patient, header.series].append(header)
    for parts in enhanced.values():
        volumes += _plan_enhanced(parts, folder, plan)
    for series_headers in classic.values():
        volumes += _plan_classic(series_headers, folder, plan)
    volumes.sort(key=lambda volume: volume.series.series_id)
    for header in labels:
        _attach_label(header, volumes, folder, plan)
    plan.series += [volume.series for volume in volumes]


def _without_copies(headers: Sequence[DicomHeader], plan: Plan) -> Iterator[DicomHeader]:
    """Yield one file of each SOP Instance UID, an intact one where another is damaged; reject the copies.

    Anonymizers that number UIDs anew give the same ones to several patients: their files are no copies. Neither are images of one
    patient at different positions: none of them is used.
    """
    by_instance: dict[tuple[str, str], list[DicomHeader]] = defaultdict(list)
    for header in headers:
        by_instance[header.patient, header.instance].append(header)
    for copies in by_instance.values():
        if not all(_is_at_same_place(header, copies[0]) for header in copies[1:]):
            plan.reject([header.path for header in copies], _SHARED_UID)
            continue
        chosen = copies[0]
        if len(copies) > 1:
            chosen = next((header for header in copies if _find_fault(header) is None), chosen)
        yield chosen
        for header in copies:
            if header is not chosen:
                plan.reject([header.path], _find_fault(header) or _COPY)


def _is_at_same_place(header: DicomHeader, other: DicomHeader) -> bool:
    """Return whether two objects have frames at the same positions; those without frames do."""
    positions, others = ([frame.position for frame in one.frames] for one in (header, other))
    return len(positions) == len(others) and np.allclose(positions, others, rtol=0, atol=_SAME_PLACE_MM)


def _find_fault(header: DicomHeader) -> Rejection | None:
    """Return why the pixels of a file cannot be decoded; structure sets have none."""
    return None if header.kind == "structures" else find_pixel_fault(header.path)


def _split_volumes(frames: Iterable[Frame], plan: Plan) -> list[tuple[Frame, ...]]:
    """Split frames into volumes; reject those that form none."""
    volumes, rejected = split_series(frames)
    for group in rejected:
        plan.reject([frame.path for frame in group.frames], Rejection(group.kind, group.reason, group.remedy))
    for volume in volumes:
        if notice := find_spacing_notice(volume):
            plan.notice([frame.path for frame in volume], notice)
    return volumes


def _without_bare_mosaics(volumes: list[tuple[Frame, ...]], mosaics: frozenset[Path], plan: Plan) -> list[tuple[Frame, ...]]:
    """Return volumes without those of one image whose type names a mosaic: its slices cannot be told apart.

    Images at several positions are slices of a mosaic that was taken apart already.

    Args:
        mosaics: files whose image type names a mosaic, but which have no private header.
    """
    bare = [volume for volume in volumes if len(volume) == 1 and volume[0].path in mosaics]
    if bare:
        plan.reject([volume[0].path for volume in bare], NO_MOSAIC_HEADER)
    return [volume for volume in volumes if volume not in bare]


def _plan_mosaic(header: DicomHeader, folder: SourceFolder) -> PlannedVolume:
    target = f"{folder.stem(folder.pseudonyms.patient(header.patient), header.instance)}.nii"
    return _plan_converted(header, PlannedMosaic(header.path, target, "image"), header.instance, 0, folder)


def _plan_enhanced(headers: Sequence[DicomHeader], folder: SourceFolder, plan: Plan) -> list[PlannedVolume]:
    """Plan the volumes of an enhanced image: one file, or the parts of a concatenated image, in any order."""
    by_path = {header.path: header for header in headers}
    parts = [header.part for header in headers if header.part is not None]
    if parts and (fault := concatenations.find_fault(parts)):
        plan.reject(by_path, fault)
        return []
    if parts and parts[0].total is None:
        plan.notice(by_path, concatenations.TOTAL_UNKNOWN)
    ordered = sorted(headers, key=lambda header: header.part.number or 0 if header.part else 0)
    mosaics = frozenset(header.path for header in headers if header.says_mosaic)
    frames = concatenations.join_frames([header.frames for header in ordered])
    volumes = _without_bare_mosaics(_split_volumes(frames, plan), mosaics, plan)
    planned = []
    for volume in volumes:
        instance, first = ordered[0].instance, volume[0]
        name = instance if len(volumes) == 1 else f"{instance}\0{first.number}"
        target = f"{folder.stem(folder.pseudonyms.patient(ordered[0].patient), name)}.nii"
        image = PlannedFrames(first.path, target, "image", tuple((frame.path, frame.index) for frame in volume))
        planned.append(_plan_converted(by_path[first.path], image, name, first.index, folder))
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
        *folder.plan_tables(folder.relative(header.path), table_key(header.patient), stem),
    ]
    patient = folder.pseudonyms.patient(header.patient)
    visit = folder.pseudonyms.visit(patient, header.study)
    return PlannedVolume(header, PlannedSeries(patient, folder.pseudonyms.series(name), "nifti", files, visit))


def _plan_classic(headers: list[DicomHeader], folder: SourceFolder, plan: Plan) -> list[PlannedVolume]:
    """Plan the volumes of a series of single-frame files."""
    by_path = {header.path: header for header in headers}
    mosaics = frozenset(header.path for header in headers if header.says_mosaic)
    volumes = _split_volumes((frame for header in headers for frame in header.frames), plan)
    volumes = _without_bare_mosaics(volumes, mosaics, plan)
    planned = []
    for volume in volumes:
        first = by_path[volume[0].path]
        patient = folder.pseudonyms.patient(first.patient)
        name = first.series if len(volumes) == 1 else f"{first.series}\0{first.instance}"
        stem = folder.stem(patient, name)
        slices = [PlannedDicom(frame.path, _slice_target(frame, by_path, stem, folder), "image", first.patient) for frame in volume]
        files: list[PlannedFile] = sorted(slices, key=lambda file: file.target)
        relative, grid = folder.relative(first.path), (len(volume), *volume[0].shape)
        key = table_key(first.patient)
        files += folder.plan_tables(relative, key, stem)
        files += folder.plan_boxes(relative, key, stem, grid)
        visit = folder.pseudonyms.visit(patient, first.study)
        planned.append(PlannedVolume(first, PlannedSeries(patient, folder.pseudonyms.series(name), "dicom", files, visit)))
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
        noun, file = "a segmentation", PlannedDicom(header.path, f"{stem}.seg.dcm", "label", header.patient)
    else:
        noun, file = "a structure set", PlannedStructureSet(header.path, f"{stem}.rtstruct.dcm", "label", header.patient)
    candidates = [volume for volume in volumes if volume.series.patient == patient]
    if header.referenced_series:
        candidates = [volume for volume in candidates if volume.header.series in header.referenced_series]
    labeled = [volume for volume in candidates if volume.header.frame_of_reference == header.frame_of_reference]
    for volume in labeled:
        volume.series.files.append(file)
    if labeled and header.points:
        plan.notice([header.path], f"structures with {header.points} contours of a single point, which label nothing")
    if not labeled:
        is_other_frame = candidates and header.referenced_series
        fault = "in another frame of reference than its image" if is_other_frame else "of no image here"
        plan.reject([header.path], Rejection("label", f"{noun} {fault}", "give the images that it was drawn on"))
