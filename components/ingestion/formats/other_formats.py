"""Formats that are recognized and not read: archives, other image formats, and truncated gzip files; each with its own remedy."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

from components.ingestion.formats.gzipped import GZIP_MAGIC
from components.ingestion.quarantine import Rejection

_HEAD_BYTES = 512
_UNPACK = "unpack it"
_CONVERT = "convert it to NIfTI or MetaImage"
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\3\4", "a ZIP archive", _UNPACK),
    (0, b"PK\5\6", "an empty ZIP archive", _UNPACK),
    (0, b"BZh", "a file compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\0", "a file compressed with xz", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with Zstandard", _UNPACK),
    (257, b"ustar", "a TAR archive", _UNPACK),
    (0, b"NRRD000", "an NRRD image", _CONVERT),
    (0, b"CDF\1", "a MINC 1 image", _CONVERT),
    (0, b"CDF\2", "a MINC 1 image", _CONVERT),
    (0, b"# === DATA DESCRIPTION FILE", "a Philips PAR header", "convert it with its .rec file to NIfTI (parrec2nii, dcm2niix)"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file", "save each array as .npy, or as NIfTI with its geometry"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture", "give the images in the form in which the scanner stored them"),
    (0, b"\xff\xd8\xff", "a JPEG picture", "give the images in the form in which the scanner stored them"),
    (0, b"II*\0", "a TIFF picture", "give the images in the form in which the scanner stored them"),
    (0, b"MM\0*", "a TIFF picture", "give the images in the form in which the scanner stored them"),
)
"""Position, bytes, name and remedy."""
_GZIPPED_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (GZIP_MAGIC, "a file that is compressed twice", "unpack it once"),
    (b"\x89HDF\r\n\x1a\n", "a gzipped HDF5 file", _UNPACK),
    (b"\x93NUMPY", "a gzipped NumPy array", _UNPACK),
    (b"ObjectType", "a gzipped MetaImage", _UNPACK),
)
"""First bytes behind a gzip header, name and remedy."""
_IMAGE_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".dcm", ".mha", ".mhd", ".h5", ".npy")
_MGH_TYPES = (0, 1, 3, 4)


def reject_other_format(path: Path) -> Rejection | None:
    """Return why a file of a format that ingestion does not read is rejected; None for a file of no known format."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        return Rejection("unreadable", "an empty file", "get the file again")
    if head.lstrip()[:14].lower().startswith((b"<html", b"<!doctype html")):
        return Rejection("no image", "a web page (HTML), probably of a download that failed", "download the file again")
    if head.startswith(GZIP_MAGIC):
        try:
            with gzip.open(path) as decompressed:
                head = decompressed.read(_HEAD_BYTES)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            return Rejection("unreadable", "a gzipped file that is damaged or cut short", "get the file again")
        for magic, name, remedy in _GZIPPED_MAGIC:
            if head.startswith(magic):
                return Rejection("unsupported", name, remedy)
    if _is_mgh(head):
        return Rejection("unsupported", "a FreeSurfer image (MGH)", "convert it to NIfTI (mri_convert)")
    for position, magic, name, remedy in _MAGIC:
        if head[position : position + len(magic)] == magic:
            return Rejection("unsupported", name, remedy)
    if path.name.lower().endswith(_IMAGE_SUFFIXES):
        reason = "no image by its content, although its suffix is that of one: damaged, cut short, or something else"
        return Rejection("unreadable", reason, "get the file again")
    return None


def _is_mgh(head: bytes) -> bool:
    """Return whether these are the first bytes of FreeSurfer's MGH: version 1, positive sides, a known type."""
    if len(head) < 90:
        return False
    version, *sides, kind = struct.unpack(">6i", head[:24])
    return version == 1 and all(0 < side < 1 << 16 for side in sides) and kind in _MGH_TYPES
