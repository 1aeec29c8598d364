"""Detection of a file's format by its content: suffixes are not reliable."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from components.ingestion.formats.gzipped import GZIP_MAGIC
from components.registries import FORMATS

HEAD_BYTES = 352
"""Size of the largest header that is inspected: NIfTI-1 with its magic."""


def detect_format(path: Path) -> str | None:
    """Return the registered name of the first format that recognizes a file; None for no known format.

    Raises:
        OSError: the file cannot be opened.
    """
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    gzipped = head.startswith(GZIP_MAGIC)
    if gzipped:
        try:
            with gzip.open(path) as decompressed:
                head = decompressed.read(HEAD_BYTES)
        except (OSError, EOFError, zlib.error):
            return None
    for image_format in sorted(FORMATS.values(), key=lambda image_format: image_format.is_fallback):
        if (image_format.reads_gzipped or not gzipped) and image_format.sniff(head, path):
            return image_format.name
    return None
