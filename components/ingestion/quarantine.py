"""Rejected inputs: kinds of reasons."""

from __future__ import annotations

from typing import Literal, NamedTuple

from components.errors import BadInput, OmniMRIError
from components.machine_faults import causes

TOO_LARGE = "check the size that its header states: if it is right, use a machine with more memory; if not, get the file again"
READER_FAILED = "open it with another program: if that reads it, report this error; if not, get the file again"
Kind = Literal[
    "unreadable", "not MR", "burnt-in", "geometry", "duplicate", "unsupported", "not magnitude", "label", "inaccessible", "no image"
]
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
    "inaccessible": (
        "a link to nothing or in a circle, content that git-annex or Git LFS did not fetch, a file or folder without permission, "
        "a pipe, socket or device",
        "fetch it, or correct its permissions",
    ),
    "no image": (
        "neither an image by its content, nor a sidecar or table that belongs to one",
        "none needed for documents; layout.ignored of the card silences them",
    ),
}
"""Kind -> (meaning, usual remedy). docs/data.md contains this table."""
SHOWN_SUFFIXES = frozenset(
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


def rejection_of(error: Exception) -> Rejection:
    """Return the rejection that an error on reading one input means.

    Call :func:`components.machine_faults.raise_machine_fault` first. Messages of libraries are dropped: they may quote the header.
    """
    if isinstance(error, OmniMRIError):
        kind = error.kind if isinstance(error, UnsupportedInput) else "unreadable"
        return Rejection(kind, error.what, error.remedy)
    if any(isinstance(cause, MemoryError) for cause in causes(error)):
        return Rejection("unreadable", "its header claims more voxels than fit in memory", TOO_LARGE)
    return Rejection("unreadable", f"damaged, or of a form that its reader does not know ({type(error).__name__})", READER_FAILED)
