"""Rejected inputs: kinds of reasons, and how the quarantine refers to a file without its name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from components.errors import BadInput, OmniMRIError
from components.ingestion.volume import Notice, QuarantineEntry

Kind = Literal["unreadable", "not MR", "burnt-in", "geometry", "duplicate", "unsupported", "not magnitude", "label", "no image"]
KINDS: dict[Kind, tuple[str, str]] = {
    "unreadable": (
        "damaged, truncated or empty; a header that claims more than the file contains; pixels that do not decode",
        "get the file again",
    ),
    "not MR": ("another modality, a report, a presentation state, spectroscopy", "remove it from the folder"),
    "burnt-in": (
        "Burned In Annotation is YES, a secondary capture or a screen save: the pixels may show a name",
        "give the original image",
    ),
    "geometry": (
        "position or orientation missing; slices missing, doubled, turned, sheared or unevenly spaced; an incomplete repeat",
        "export the whole series again",
    ),
    "duplicate": (
        "the SOP Instance UID of another file, or the voxels of another series under another name",
        "remove one of the two",
    ),
    "unsupported": (
        "undersampled, echo-planar or non-Cartesian k-space; a 4-D file that the card does not explain",
        "see the entry's remedy",
    ),
    "not magnitude": (
        "phase, real or imaginary part, a derived map, statistics, colors, inverted grayscale, "
        "or a mask or probability map that the card does not declare",
        "none needed; if it is an image, see the entry's remedy",
    ),
    "label": (
        "a label map on another grid than every image of its case, with unknown segments, or one of several that fit; "
        "outlines off the slices, open, or of another frame of reference; boxes beyond the image",
        "resample it, or fix the card",
    ),
    "no image": (
        "neither an image by its content, nor a sidecar or table that belongs to one",
        "none needed for documents; layout.ignored of the card silences them",
    ),
}
"""Kind -> (meaning, usual remedy). docs/data.md contains this table."""
_SHOWN_SUFFIXES = frozenset(
    [
        ".bin",
        ".bval",
        ".bvec",
        ".cfl",
        ".csv",
        ".dcm",
        ".dicom",
        ".doc",
        ".docx",
        ".gif",
        ".gz",
        ".h5",
        ".hdf5",
        ".hdr",
        ".htm",
        ".html",
        ".ima",
        ".img",
        ".jpeg",
        ".jpg",
        ".json",
        ".log",
        ".mat",
        ".md",
        ".mha",
        ".mhd",
        ".mnc",
        ".mrd",
        ".nii",
        ".npy",
        ".npz",
        ".nrrd",
        ".par",
        ".parquet",
        ".pdf",
        ".pkl",
        ".png",
        ".rec",
        ".raw",
        ".tar",
        ".tgz",
        ".tif",
        ".tiff",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
        ".zraw",
    ]
)
"""Suffixes that an entry shows; any other may be part of a name."""


class Rejection(NamedTuple):
    """Reason why an input is not ingested."""

    kind: Kind
    reason: str
    remedy: str


class UnsupportedInput(BadInput):
    """An input that can be read but not used."""

    def __init__(self, kind: Kind, what: str, *, where: str = "", remedy: str = "") -> None:
        self.kind = kind
        super().__init__(what, where=where, remedy=remedy)


def rejection_of(error: OmniMRIError) -> Rejection:
    """Return the rejection that an error about one input means."""
    kind = error.kind if isinstance(error, UnsupportedInput) else "unreadable"
    return Rejection(kind, error.what, error.remedy)


class SourceListing:
    """Files of a source folder in a fixed order, so that an entry can refer to a file by its number: its name may be the patient's.

    ``find . -type f | LC_ALL=C sort | sed -n 12p`` in the folder prints the twelfth file.
    """

    def __init__(self, source: Path) -> None:
        names = sorted(
            (path.relative_to(source).as_posix().encode(errors="surrogateescape"), path)
            for path in source.rglob("*")
            if path.is_file()
        )
        self._numbers = {path: number for number, (_, path) in enumerate(names, start=1)}

    def __iter__(self) -> Iterator[Path]:
        return iter(self._numbers)

    def quarantine_entry(self, paths: Iterable[Path], rejection: Rejection) -> QuarantineEntry:
        """Return an entry about one file, or about files that would have formed one volume."""
        return QuarantineEntry(self._describe(set(paths)), kind=rejection.kind, reason=rejection.reason, remedy=rejection.remedy)

    def notice(self, paths: Iterable[Path], text: str) -> Notice:
        """Return a notice about ingested files."""
        distinct = set(paths)
        first = min(distinct, key=self._numbers.__getitem__)
        return Notice(text, len(distinct), self._describe({first}))

    def _describe(self, paths: set[Path]) -> str:
        """Return the number of the first file, how many follow, and its suffix if that can be no name."""
        first, more = min(paths, key=self._numbers.__getitem__), len(paths) - 1
        suffix = first.suffix.lower()
        shown = f", *{suffix}" if suffix in _SHOWN_SUFFIXES else ""
        return f"file {self._numbers[first]}{f' and {more} more' if more else ''} of {len(self._numbers)}{shown}"
