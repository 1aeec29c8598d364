"""What a file is, by its content: suffixes lie."""

from __future__ import annotations

import gzip
import re
import zlib
from io import BytesIO
from pathlib import Path
from typing import Literal

from components.errors import BadInput
from components.ingestion.formats.metaimage import DEFLATE_AT_BEST

Kind = Literal["dicom", "nifti", "metaimage", "numpy", "hdf5", "other"]
_HEAD = 352  # bytes of the largest header that is looked at, NIfTI-1 with its magic
_PACKED = b"\x1f\x8b"
UNPACKED_AT_MOST = 2**28
"""Bytes of a gzipped DICOM file once it is unpacked; one of more is damaged, or means harm."""
_METAIMAGE = re.compile(rb"\s*(?:ObjectType|Comment|NDims)\s*=")


def kind_of(path: Path) -> Kind:
    """DICOM (PS3.10 preamble, or a bare data set from group 0008) and NIfTI, plain or gzipped; MetaImage, NumPy, HDF5, or other."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head[:2] == _PACKED:
        try:
            with gzip.open(path) as packed:
                head = packed.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            return "other"
        return "dicom" if _is_dicom(head) else "nifti" if _is_nifti(head) else "other"
    if _is_dicom(head):
        return "dicom"
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if head[:6] == b"\x93NUMPY":
        return "numpy"
    if _METAIMAGE.match(head):
        return "metaimage"
    return "nifti" if _is_nifti(head) else "other"


def unpacked(path: Path) -> bytes:
    """The bytes of a file, those inside of a gzipped one.

    Raises:
        BadInput: a gzipped file that is damaged, or unpacks to more than :data:`UNPACKED_AT_MOST`.
    """
    stored = path.read_bytes()
    if stored[:2] != _PACKED:
        return stored
    most = min(UNPACKED_AT_MOST, DEFLATE_AT_BEST * len(stored))  # room is set aside for so many before they are there
    try:
        with gzip.open(BytesIO(stored)) as packed:
            content = packed.read(most + 1)
    except (OSError, EOFError, zlib.error):
        raise BadInput("a gzipped file that is damaged or cut short", where=path.name, remedy="get the file again") from None
    if len(content) > most:
        raise BadInput(
            f"a gzipped file that unpacks to more than {most >> 20} MiB", where=path.name, remedy="unpack it, if that is right"
        )
    return content


def opened(path: Path) -> Path | BytesIO:
    """What a library of DICOM is to read: the file, or what is inside of a gzipped one.

    Raises:
        BadInput: see :func:`unpacked`.
    """
    return BytesIO(unpacked(path)) if _is_packed(path) else path


def _is_packed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == _PACKED


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM" or head[:4] in (b"\x08\x00\x05\x00", b"\x08\x00\x00\x00", b"\x08\x00\x08\x00")


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
