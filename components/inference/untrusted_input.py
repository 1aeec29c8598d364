"""What a stranger's file may ask of this machine: so much memory, and no file but itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.errors import BadInput
from components.ingestion.formats.sniff import detect_format
from components.registries import FORMATS


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        request_bytes: of its body; images: of its rows; instruction_characters: of each question.
        voxels: of an image once it is unpacked (all frames, coils and channels).
        queue: requests that wait while one is answered; seconds: for an answer.
    """

    request_bytes: int = 256 * 2**20
    images: int = 4
    instruction_characters: int = 2000
    voxels: int = 2**27
    queue: int = 8
    seconds: float = 120.0


def require_modest(path: Path, limits: Limits) -> None:
    """Look at a file's claims before it is read.

    Raises:
        BadInput: more voxels than allowed, a damaged header, or a file that refers to other files.
    """
    name = detect_format(path)
    voxels = path.stat().st_size if name is None else FORMATS[name].count_voxels(path, limits.voxels)
    if voxels > limits.voxels:
        raise BadInput("an image of too many voxels", where="image", remedy=f"at most {limits.voxels} in all")
