"""Boxes as text: ``<bbox>lesion<loc003><loc008><loc065><loc076>``, row, column, row, column in 256 bins per axis, half-open.

One location token is one edge (Pix2Seq, arXiv:2109.10852, section 2.1), so that every box has the same small number of tokens. The
parser accepts any text and returns the well-formed boxes in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

BOX_TOKEN = "<bbox>"  # noqa: S105 (a text marker, not a secret)
GRID = 256
LOCATIONS = tuple(f"<loc{bin_number:03d}>" for bin_number in range(GRID))
"""The location tokens, in their order."""
NO_LESION = "no lesion"
_BOX = re.compile(r"<bbox>\s*([a-z][a-z ]*?)\s*" + r"\s*".join([r"<loc(\d{3})>"] * 4))


@dataclass(frozen=True)
class TextBox:
    """A labeled box, with edges in 0-255 of the image's rows and columns; ``row0 < row1`` and ``col0 < col1``."""

    label: str
    row0: int
    col0: int
    row1: int
    col1: int


def format_boxes(boxes: Iterable[TextBox]) -> str:
    """Return the answer to a detection instruction: the boxes in reading order, or :data:`NO_LESION` without boxes."""
    ordered = sorted(boxes, key=lambda box: (box.row0, box.col0, box.row1, box.col1))
    texts = [BOX_TOKEN + b.label + "".join(LOCATIONS[edge] for edge in (b.row0, b.col0, b.row1, b.col1)) for b in ordered]
    return "".join(texts) or NO_LESION


def parse_boxes(text: str) -> list[TextBox]:
    """Return every well-formed, non-empty box in ``text``; ignore everything else."""
    boxes = [TextBox(label, *(int(edge) for edge in edges)) for label, *edges in _BOX.findall(text)]
    return [box for box in boxes if 0 <= box.row0 < box.row1 < GRID and 0 <= box.col0 < box.col1 < GRID]
