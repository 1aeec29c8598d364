"""Boxes as text: ``<bbox>lesion(012,034,256,300)``, integers 0-999 per axis (row, column, row, column), half-open.

Edges are zero-padded, so that every box has the same small number of tokens. The parser accepts any text and returns the
well-formed boxes in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

BOX_TOKEN = "<bbox>"  # noqa: S105 (a text marker, not a secret)
GRID = 1000
NO_LESION = "no lesion"
_BOX = re.compile(r"<bbox>\s*([a-z][a-z ]*?)\s*\(\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)")


@dataclass(frozen=True)
class TextBox:
    """A labeled box, with edges in 0-999 of the image's rows and columns; ``row0 < row1`` and ``col0 < col1``."""

    label: str
    row0: int
    col0: int
    row1: int
    col1: int


def format_boxes(boxes: Iterable[TextBox]) -> str:
    """Return the answer to a detection instruction: the boxes in reading order, or :data:`NO_LESION` without boxes."""
    ordered = sorted(boxes, key=lambda box: (box.row0, box.col0, box.row1, box.col1))
    return " ".join(f"{BOX_TOKEN}{b.label}({b.row0:03d},{b.col0:03d},{b.row1:03d},{b.col1:03d})" for b in ordered) or NO_LESION


def parse_boxes(text: str) -> list[TextBox]:
    """Return every well-formed, non-empty box in ``text``; ignore everything else."""
    boxes = [TextBox(label, *(int(edge) for edge in edges)) for label, *edges in _BOX.findall(text)]
    return [box for box in boxes if box.row0 < box.row1 and box.col0 < box.col1]
