"""The DICOM format: classic, mosaic and enhanced MR images, with segmentations and structure sets as labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydicom import Dataset
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.annotations import lesion_boxes
from components.ingestion.formats.base import FileHeader, Format
from components.ingestion.formats.dicom.classic import read_series, slice_indices
from components.ingestion.formats.dicom.headers import LABEL_CLASSES, find_rejection, read_frames, read_header, sidecar_fields
from components.ingestion.formats.dicom.multiframe import is_mosaic, unpack_frames, unpack_mosaic
from components.ingestion.formats.dicom.planning import DicomHeader, inspect_header, plan_files
from components.ingestion.formats.dicom.series_splitting import split_series
from components.ingestion.formats.image_files import volume_from_image
from components.ingestion.formats.voxels import remove_nonfinite, require_single
from components.ingestion.quarantine import Rejection
from components.ingestion.source_folder import Plan, SourceFolder
from components.ingestion.volume import Box, Volume

_BARE_HEADS = (b"\x08\x00\x05\x00", b"\x08\x00\x00\x00", b"\x08\x00\x08\x00")
"""First elements of data sets without a preamble: group 0008."""


class DicomFormat(Format):
    """DICOM files (PS3.10, or a bare data set that begins with group 0008), plain or gzipped."""

    name = "dicom"
    reads_gzipped = True

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return head[128:132] == b"DICM" or head[:4] in _BARE_HEADS

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
        return _read_classic(files, anatomy, files[0].parent.name)

    @override
    def place_boxes(self, boxes_3d: Sequence[lesion_boxes.Box3D], files: Sequence[Path], volume: Volume) -> tuple[Box, ...]:
        slice_of_file = slice_indices(files)
        boxes = lesion_boxes.split_into_slices(list(boxes_3d))
        return tuple(replace(box, slice_index=slice_of_file[box.slice_index]) for box in boxes)

    def read_path(self, path: Path) -> Volume:
        """Read one file, or all files of one series in a folder that contain one volume."""
        from components.ingestion.formats.sniff import detect_format

        if not path.is_dir():
            return _read_one_volume([path], path)
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and detect_format(file) == self.name]
        return _read_one_volume(files, path)

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


def _read_classic(files: Sequence[Path], anatomy: str | None, name: str) -> Volume:
    voxels, affine, acquisition = read_series(files, anatomy)
    return Volume(voxels=remove_nonfinite(voxels, name), affine=affine, acquisition=acquisition)


def _read_one_volume(files: Sequence[Path], path: Path) -> Volume:
    """Read the images among files as one volume.

    Args:
        path: the user's file or folder, for error messages.

    Raises:
        BadInput: no MR image, several series or volumes, or frames that form no volume.
    """
    headers = _usable_headers(files, path)
    require_single(len({str(header.SeriesInstanceUID) for header in headers.values()}), "series", path)
    first, header = next(iter(headers.items()))
    if is_mosaic(header):
        require_single(len(headers), "volumes", path)
        return volume_from_image(unpack_mosaic(first), sidecar_fields(header), path)
    frames = []
    for file, file_header in headers.items():
        file_frames, rejection = read_frames(file_header, file)
        if rejection:
            raise BadInput(rejection.reason, where=str(path), remedy=rejection.remedy)
        frames += file_frames
    volumes, rejected = split_series(frames)
    if rejected:
        raise BadInput(rejected[0].reason, where=str(path), remedy=rejected[0].remedy)
    require_single(len(volumes), "volumes", path)
    if "PerFrameFunctionalGroupsSequence" in header and len(headers) == 1:
        indices = [frame.index for frame in volumes[0]]
        return volume_from_image(unpack_frames(first, indices), sidecar_fields(header, indices[0]), path)
    return _read_classic([frame.path for frame in volumes[0]], None, path.name)


def _usable_headers(files: Sequence[Path], path: Path) -> dict[Path, Dataset]:
    """Return the headers of MR images that can be read, labels excluded.

    Raises:
        BadInput: none of the files is one.
    """
    headers = {file: read_header(file) for file in files}
    images = {file: header for file, header in headers.items() if header.get("SOPClassUID") not in LABEL_CLASSES}
    rejections = {file: find_rejection(header) for file, header in images.items()}
    usable = {file: header for file, header in images.items() if rejections[file] is None}
    if not usable:
        reason = next((rejection.reason for rejection in rejections.values() if rejection), "no DICOM MR image")
        raise BadInput(reason, where=str(path), remedy="give one MR series")
    return usable
