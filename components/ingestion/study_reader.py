"""Read the series of one examination: files of the user, the DICOM files of a study, or the images of a BIDS session."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from components.errors import BadInput
from components.ingestion.file_names import not_magnitude_by_name, session_of
from components.ingestion.formats.sniff import detect_format
from components.ingestion.formats.voxels import require_image, require_single
from components.ingestion.volume import Volume
from components.ingestion.volume_reader import read_scan


@dataclass(frozen=True)
class StudySource:
    """A series of a study.

    Attributes:
        volume: its voxels and header.
        path: the file or the folder that it was read from.
        files: its DICOM files; empty for another format.
    """

    volume: Volume
    path: Path
    files: tuple[Path, ...] = ()


def read_study(paths: Sequence[Path]) -> tuple[list[StudySource], list[str]]:
    """Read the series of one examination, in the order of the paths, those of a folder by sequence and plane.

    Returns:
        The series, and a reason for each series of a folder that is no single volume, such as a localizer, or no image, such as a
        mask: it is left out.

    Raises:
        BadInput: a file that cannot be read, no series, or images of several visits.
    """
    sources: list[StudySource] = []
    left_out: list[str] = []
    for path in paths:
        if not path.is_dir():
            sources.append(StudySource(read_scan(path), path, (path,) if detect_format(path) == "dicom" else ()))
            continue
        found, reasons = _read_folder(path)
        sources += found
        left_out += reasons
    return sources, left_out


def _read_folder(folder: Path) -> tuple[list[StudySource], list[str]]:
    """Read the series of a folder; DICOM files are told apart by their headers, others are a series each."""
    from components.ingestion.formats.dicom.format import group_series, read_one_volume

    by_format: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = detect_format(file)
        if name is not None and (name == "dicom" or not not_magnitude_by_name(file.relative_to(folder).as_posix())):
            by_format.setdefault(name, []).append(file)
    dicom = by_format.pop("dicom", [])
    files = [file for listed in by_format.values() for file in listed]
    sessions = {session_of(file.relative_to(folder).as_posix()) for file in files} - {None}
    require_single(max(len(sessions), 1), "sessions", folder)
    readers: list[tuple[Callable[[], Volume], Path, tuple[Path, ...]]] = [(partial(read_scan, file), file, ()) for file in files]
    groups = group_series(dicom, folder) if dicom else []
    readers += [(partial(read_one_volume, group, folder), folder, tuple(group)) for group in groups]
    sources: list[StudySource] = []
    reasons: list[str] = []
    first: BadInput | None = None
    for read, path, of_series in readers:
        try:
            volume = read()
            require_image(volume.voxels, path.name, bool(of_series) or volume.kspace is not None)
            sources.append(StudySource(volume, path, of_series))
        except BadInput as error:
            first = first or error
            reasons.append(error.what)
    if not sources:
        raise first or BadInput("no image in this folder", where=str(folder), remedy="give a folder of DICOM or NIfTI images")
    sources.sort(key=lambda one: (one.volume.acquisition.sequence or "", one.volume.acquisition.plane or ""))
    return sources, reasons
