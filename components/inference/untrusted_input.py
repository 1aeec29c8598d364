"""Limits for untrusted uploads: size of the request, decoded size of an image, no references to other files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput
from components.ingestion.formats.sniff import detect_format
from components.registries import FORMATS


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Attributes:
        request_bytes: size of the body, bytes.
        images: number of rows, each with one image.
        instruction_characters: length of each instruction, characters.
        voxels: decoded size of an image: voxels of all frames, coils and channels.
        queue: number of requests that wait while one is answered.
        seconds: time for an answer.
        files: number of files of an upload, and of a zip archive in it.
        unpacked_bytes: size of the unpacked files of an upload, bytes.
        kept_bytes: size of all uploads and answers that a server keeps, bytes; the oldest are removed first.
        kept_seconds: time after the last use for which a server keeps an upload or an answer.
    """

    request_bytes: int = 256 * 2**20
    images: int = 4
    instruction_characters: int = 2000
    voxels: int = 2**27
    queue: int = 8
    seconds: float = 120.0
    files: int = 5000
    unpacked_bytes: int = 2**30
    kept_bytes: int = 4 * 2**30
    kept_seconds: float = 3600.0


def check_limits(path: Path, limits: Limits) -> None:
    """Check the header of an image file against the limits before the file is read.

    Raises:
        BadInput: the image has too many voxels, its header is damaged, or the file refers to other files.
    """
    name = detect_format(path)
    voxels = path.stat().st_size if name is None else FORMATS[name].count_voxels(path, limits.voxels)
    if voxels > limits.voxels:
        raise BadInput("the image has too many voxels", where="image", remedy=f"send at most {limits.voxels} voxels")
