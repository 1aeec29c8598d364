"""Boxes as text: ``<bbox>lesion<loc003><loc008><loc065><loc076>``, row, column, row, column in 256 bins per axis, half-open.

A box of a volume has six edges: slice, row, column, slice, row, column, in 256 bins of the volume's own slices, rows and columns.
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
_BOX = re.compile(r"<bbox>\s*([a-z][a-z ]*?)\s*((?:<loc\d{3}>\s*)+)")
_EDGE = re.compile(r"<loc(\d{3})>")


@dataclass(frozen=True)
class TextBox:
    """A labeled box, with edges in 0-255 of the image's rows and columns; ``row0 < row1`` and ``col0 < col1``."""

    label: str
    row0: int
    col0: int
    row1: int
    col1: int

    @property
    def edges(self) -> tuple[int, ...]:
        """The edges in the order of the text: the smaller ones, then the larger ones."""
        return self.row0, self.col0, self.row1, self.col1


@dataclass(frozen=True)
class VolumeBox(TextBox):
    """A labeled box of a volume, with edges in 0-255 of its slices, too; ``slice0 < slice1``."""

    slice0: int
    slice1: int

    @property
    def edges(self) -> tuple[int, ...]:  # noqa: D102 (see TextBox)
        return self.slice0, self.row0, self.col0, self.slice1, self.row1, self.col1


def format_boxes(boxes: Iterable[TextBox]) -> str:
    """Return the answer to a detection instruction: the boxes in reading order, or :data:`NO_LESION` without boxes."""
    ordered = sorted(boxes, key=lambda box: box.edges)
    texts = [BOX_TOKEN + box.label + "".join(LOCATIONS[edge] for edge in box.edges) for box in ordered]
    return "".join(texts) or NO_LESION


def parse_boxes(text: str) -> list[TextBox]:
    """Return every well-formed, non-empty box in ``text``, with four edges or six; ignore everything else."""
    boxes = []
    for label, edges in _BOX.findall(text):
        numbers = [int(edge) for edge in _EDGE.findall(edges)]
        half = len(numbers) // 2
        smaller, larger = numbers[:half], numbers[half:]
        if len(numbers) in (4, 6) and all(low < high < GRID for low, high in zip(smaller, larger, strict=True)):
            boxes.append(_box(label, smaller, larger))
    return boxes


def _box(label: str, smaller: list[int], larger: list[int]) -> TextBox:
    """Return the box of its smaller and larger edges: rows and columns, for a volume after the slices."""
    (row0, col0), (row1, col1) = smaller[-2:], larger[-2:]
    if len(smaller) == 2:
        return TextBox(label, row0, col0, row1, col1)
    return VolumeBox(label, row0, col0, row1, col1, smaller[0], larger[0])
