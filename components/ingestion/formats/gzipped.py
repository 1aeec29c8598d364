"""Gzipped image files: bounded decompression."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO
from pathlib import Path

from components.errors import BadInput

GZIP_MAGIC = b"\x1f\x8b"
MAX_DECOMPRESSED_BYTES = 2**28
"""Upper limit of a decompressed DICOM file or workbook; a larger one is damaged or malicious."""
MAX_DEFLATE_RATIO = 1032
"""Deflate compresses at most this many bytes into one; a file that claims a higher ratio is damaged or malicious."""


def is_gzipped(path: Path) -> bool:
    """Return whether the file starts with the gzip magic."""
    with path.open("rb") as stream:
        return stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC


def read_decompressed(path: Path) -> bytes:
    """Return the bytes of a file, decompressed if it is gzipped.

    Raises:
        BadInput: a gzipped file that is damaged, or decompresses to more than :data:`MAX_DECOMPRESSED_BYTES`.
    """
    stored = path.read_bytes()
    if not stored.startswith(GZIP_MAGIC):
        return stored
    limit = min(MAX_DECOMPRESSED_BYTES, MAX_DEFLATE_RATIO * len(stored))  # read() allocates this much at once
    try:
        with gzip.open(BytesIO(stored)) as stream:
            content = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error):
        raise BadInput("a gzipped file that is damaged or cut short", where=path.name, remedy="get the file again") from None
    if len(content) > limit:
        raise BadInput(
            f"a gzipped file that unpacks to more than {limit >> 20} MiB", where=path.name, remedy="unpack it, if that is right"
        )
    return content


def open_decompressed(path: Path) -> Path | BytesIO:
    """Return what a DICOM library can read: the path itself, or a stream of the decompressed bytes of a gzipped file.

    Raises:
        BadInput: see :func:`read_decompressed`.
    """
    return BytesIO(read_decompressed(path)) if is_gzipped(path) else path
