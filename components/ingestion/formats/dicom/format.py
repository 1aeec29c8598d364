"""The DICOM format: classic, mosaic and enhanced MR images, with segmentations and structure sets as labels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.annotations import lesion_boxes
from components.ingestion.formats.base import FileHeader, Format
from components.ingestion.formats.dicom.classic import SliceReadBack, check_slices, read_series, slice_indices
from components.ingestion.formats.dicom.concatenations import TOTAL_UNKNOWN, find_fault, join_frames, part_of
from components.ingestion.formats.dicom.frames import Frame
from components.ingestion.formats.dicom.headers import LABEL_CLASSES, find_rejection, read_frames, sidecar_fields
from components.ingestion.formats.dicom.multiframe import (
    NO_MOSAIC_HEADER,
    find_mosaic_rejection,
    is_mosaic,
    says_mosaic,
    unpack_frames,
    unpack_mosaic,
)
from components.ingestion.formats.dicom.object_headers import DicomHeader, inspect_header
from components.ingestion.formats.dicom.planning import plan_files
from components.ingestion.formats.dicom.reading import is_dicom, read_header, read_header_to_pixels
from components.ingestion.formats.dicom.series_splitting import split_series
from components.ingestion.formats.image_files import volume_from_image
from components.ingestion.formats.voxels import require_single
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan, SourceFolder
from components.ingestion.volume import Box, Volume

logger = logging.getLogger(__name__)


class DicomFormat(Format):
    """DICOM files (PS3.10, or a bare data set), plain or gzipped."""

    name = "dicom"
    reads_gzipped = True

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return is_dicom(head, path)

    @override
    def inspect(self, path: Path) -> FileHeader:
        try:
            return inspect_header(path, self.name)
        except BadInput:
            raise
        except Exception as error:  # messages of pydicom are not passed on: they may quote the header
            reason = f"a DICOM header that cannot be read ({type(error).__name__})"
            return FileHeader(path, self.name, Rejection("unreadable", reason, "get the file again"))

    @override
    def plan(self, headers: Sequence[DicomHeader], folder: SourceFolder, plan: Plan) -> None:
        plan_files(headers, folder, plan)

    @override
    def read(self, files: Sequence[Path], sidecar: Path | None, anatomy: str | None) -> Volume:
        return _read_classic(files, anatomy)

    @override
    def check_series(self, files: Sequence[Path], read_back: Sequence[SliceReadBack]) -> None:
        check_slices(files, read_back)

    @override
    def place_boxes(self, boxes_3d: Sequence[lesion_boxes.Box3D], files: Sequence[Path], volume: Volume) -> tuple[Box, ...]:
        slice_of_file = slice_indices(files)
        boxes = lesion_boxes.split_into_slices(list(boxes_3d))
        return tuple(replace(box, slice_index=slice_of_file[box.slice_index]) for box in boxes)

    def read_path(self, path: Path) -> Volume:
        """Read one file, or all files of one series in a folder that contain one volume."""
        from components.ingestion.formats.sniff import detect_format

        if not path.is_dir():
            return read_one_volume([path], path)
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and detect_format(file) == self.name]
        return read_one_volume(files, path)

    @override
    def count_voxels(self, path: Path, limit: int) -> int:
        try:
            header = read_header(path)
            return int(header.get("Rows") or 0) * int(header.get("Columns") or 0) * int(header.get("NumberOfFrames") or 1)
        except BadInput:
            raise
        except Exception:  # pydicom raises many types for damaged headers
            raise BadInput("a damaged DICOM header", where="image", remedy="get the file again") from None


FORMAT = DicomFormat()


def _read_classic(files: Sequence[Path], anatomy: str | None, users_path: Path | None = None) -> Volume:
    """Read the images of a volume.

    Args:
        users_path: what a user gave, for warnings; None for ingested files, about which ingestion has told.
    """
    voxels, affine, acquisition, notes = read_series(files, anatomy)
    if users_path is not None:
        _warn(notes, users_path)
    return Volume(voxels=voxels, affine=affine, acquisition=acquisition)


def _warn(notes: Iterable[str], path: Path) -> None:
    for note in notes:
        logger.warning("%s: %s", path.name, note)


def read_one_volume(files: Sequence[Path], path: Path) -> Volume:
    """Read the images among files as one volume.

    Args:
        path: the user's file or folder, for error messages.

    Raises:
        BadInput: no MR image, several series, studies, patients or volumes, or frames that form no volume.
    """
    headers = _usable_headers(files, path)
    _require_one("SeriesInstanceUID", "series", headers.values(), path)
    _require_one_study(headers.values(), path)
    first, header = next(iter(headers.items()))
    if is_mosaic(header):
        require_single(len(headers), "volumes", path)
        _raise(find_mosaic_rejection(header), path)
        image, notes = unpack_mosaic(first)
        _warn(notes, path)
        return volume_from_image(image, sidecar_fields(header), path)
    volumes, rejected = split_series(_frames_of_files(headers, path))
    faults = [group for group in rejected if not volumes or group.kind != "not magnitude"]
    if faults:
        raise BadInput(faults[0].reason, where=str(path), remedy=faults[0].remedy)
    require_single(len(volumes), "volumes", path)
    if len(volumes[0]) == 1 and says_mosaic(header):
        _raise(NO_MOSAIC_HEADER, path)
    if "PerFrameFunctionalGroupsSequence" in header:
        place = volumes[0][0]
        image, notes = unpack_frames([(frame.path, frame.index) for frame in volumes[0]])
        _warn(notes, path)
        return volume_from_image(image, sidecar_fields(headers[place.path], place.index), path)
    return _read_classic([frame.path for frame in volumes[0]], None, path)


def _frames_of_files(headers: Mapping[Path, Dataset], path: Path) -> list[Frame]:
    """Return the frames of classic images, or of one enhanced image, which may be concatenated.

    Raises:
        BadInput: geometry that cannot be used, several enhanced images, or parts of one that are missing.
    """
    frames: dict[Path, list[Frame]] = {}
    for file, header in headers.items():
        frames[file], rejection = read_frames(header, file)
        _raise(rejection, path)
    if not any("PerFrameFunctionalGroupsSequence" in header for header in headers.values()):
        return [frame for found in frames.values() for frame in found]
    parts = {file: part for file, header in headers.items() if (part := part_of(header)) is not None}
    require_single(len({parts[file].uid if file in parts else str(file) for file in headers}), "multi-frame images", path)
    if parts:
        _raise(find_fault(list(parts.values())), path)
        if next(iter(parts.values())).total is None:
            logger.warning("%s: %s", path.name, TOTAL_UNKNOWN)
    return join_frames([frames[file] for file in sorted(frames, key=lambda file: parts[file].number or 0 if parts else 0)])


def _raise(rejection: Rejection | None, path: Path) -> None:
    """Raise a rejection of a user's file or folder as an error.

    Raises:
        BadInput: there is one.
    """
    if rejection is not None:
        raise BadInput(rejection.reason, where=str(path), remedy=rejection.remedy)


def group_series(files: Sequence[Path], folder: Path) -> list[list[Path]]:
    """Return the files of each MR series of one study, labels and objects that are no MR image excluded.

    Raises:
        BadInput: no MR image, or images of several studies or patients.
    """
    series: dict[str, list[Path]] = {}
    headers = _usable_headers(files, folder)
    for file, header in headers.items():
        series.setdefault(str(header.SeriesInstanceUID), []).append(file)
    _require_one_study(headers.values(), folder)
    return [series[uid] for uid in sorted(series)]


def _require_one_study(headers: Iterable[Dataset], path: Path) -> None:
    """Require images of one patient and one study, whatever their series are called.

    Raises:
        BadInput: of several.
    """
    _require_one("StudyInstanceUID", "studies", headers, path)
    _require_one("PatientID", "patients", headers, path)


def _require_one(keyword: str, noun: str, headers: Iterable[Dataset], path: Path) -> None:
    """Require one value of an element among the headers that state it.

    Raises:
        BadInput: several values.
    """
    stated = {str(header.get(keyword) or "").strip() for header in headers} - {""}
    require_single(max(len(stated), 1), noun, path)


def _usable_headers(files: Sequence[Path], path: Path) -> dict[Path, Dataset]:
    """Return the headers of MR images that can be read, labels excluded.

    Raises:
        BadInput: none of the files is one.
    """
    headers = {file: read_header_to_pixels(file) for file in files}
    images = {file: read for file, read in headers.items() if read[0].get("SOPClassUID") not in LABEL_CLASSES}
    rejections = {file: find_rejection(*read) for file, read in images.items()}
    usable = {file: header for file, (header, _) in images.items() if rejections[file] is None}
    if not usable:
        rejection = next((rejection for rejection in rejections.values() if rejection), None)
        reason, remedy = (rejection.reason, rejection.remedy) if rejection else ("no DICOM MR image", "give one MR series")
        raise BadInput(reason, where=str(path), remedy=remedy)
    return usable
