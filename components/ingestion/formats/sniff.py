"""What a file is, by its content: suffixes lie."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Literal

from components.ingestion.formats.gzipped import GZIP_MAGIC

Kind = Literal["dicom", "nifti", "metaimage", "numpy", "hdf5", "other"]
_HEAD = 352  # bytes of the largest header that is looked at, NIfTI-1 with its magic
_METAIMAGE = re.compile(rb"\s*(?:ObjectType|Comment|NDims)\s*=")


def kind_of(path: Path) -> Kind:
    """DICOM (PS3.10 preamble, or a bare data set from group 0008) and NIfTI, plain or gzipped; MetaImage, NumPy, HDF5, or other."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if head[:2] == GZIP_MAGIC:
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


def _is_dicom(head: bytes) -> bool:
    return head[128:132] == b"DICM" or head[:4] in (b"\x08\x00\x05\x00", b"\x08\x00\x00\x00", b"\x08\x00\x08\x00")


def _is_nifti(head: bytes) -> bool:
    return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")
