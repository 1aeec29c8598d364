"""Lesion boxes in tables beside the images: fastMRI+ tables, and tables of 3-D boxes that a card describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog.cards import DatasetCard
from components.catalog.layout import BoxTable
from components.errors import BadInput
from components.ingestion.annotations.tables import Row, column_index, find_rows, read_rows, read_titles
from components.ingestion.deidentification import allowlists
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume import Box

BOX_COLUMNS = ("slice", "study_level", "x", "y", "width", "height", "label")
"""Columns of a fastMRI+ table, without the file name."""
_NUMBER_COLUMNS = ("slice", "x", "y", "width", "height")


def read_box_rows(table: Path, file_name: str, card: DatasetCard) -> list[dict[str, Any]] | None:
    """Return the rows of a fastMRI+ table about one file, without its name; None if the table does not contain it.

    A label becomes ``finding`` unless fastMRI+ or the label map of the card contains it.

    Raises:
        BadInput: the table lacks columns, or a position is not a number.
    """
    titles = read_titles(table)
    missing = {"file", *BOX_COLUMNS} - set(titles)
    if missing:
        raise BadInput(f"columns missing: {', '.join(sorted(missing))}", where=table.name, remedy="use the fastMRI+ columns")
    allowed_labels = allowlists.FINDINGS | {name.lower() for name in card.label_map.values()}
    box_rows: list[dict[str, Any]] = []
    for row in _rows_of_file(table, titles, file_name):
        label = row["label"].strip()
        try:
            numbers = {name: str(int(float(row[name]))) if row[name].strip() else "" for name in _NUMBER_COLUMNS}
        except (ValueError, OverflowError):
            raise BadInput("the position of a box is not a number", where=table.name, remedy="fix the table") from None
        study_level = "Yes" if row["study_level"] == "Yes" else "No"
        box_rows.append({**numbers, "study_level": study_level, "label": label if label.lower() in allowed_labels else "finding"})
    return box_rows or None


def _rows_of_file(table: Path, titles: list[str], file_name: str) -> Iterator[dict[str, str]]:
    index = titles.index("file")
    for row in read_rows(table)[1:]:
        if len(row) == len(titles) and row[index] == file_name:
            yield dict(zip(titles, row, strict=True))


def is_reviewed(lists: list[Path], file_name: str) -> bool:
    """Return whether a list of reviewed files contains a file."""
    return any(row[0].strip() == file_name for path in lists for row in read_rows(path))


def read_box3d_rows(table: Path, layout: BoxTable, key: str, grid: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return the rows of a table of 3-D boxes about one image, as :func:`read_box_rows` plus the number of ``slices``.

    Args:
        grid: slices, rows and columns of the image; empty if unknown.

    Raises:
        BadInput: the table lacks a column of the card, or a position is not a number.
        UnsupportedInput: a box extends beyond the image.
    """
    titles, rows = find_rows(table, layout, key)
    columns = [[column_index(column, titles, table) for column in pair] for pair in (layout.slices, layout.rows, layout.columns)]
    box_rows = []
    for row in rows:
        ranges = _read_ranges(row, columns, layout.first, table)
        is_beyond = any(high >= size for (_, high), size in zip(ranges, grid, strict=False))
        if is_beyond or any(low < 0 or low > high for low, high in ranges):
            raise UnsupportedInput(
                "label",
                "a box extends beyond the image",
                where=table.name,
                remedy="fix the table, or first and image in the table entry of the card",
            )
        (slice_index, y, x), (depth, height, width) = (low for low, _ in ranges), (high - low + 1 for low, high in ranges)
        numbers = {"slice": slice_index, "slices": depth, "x": x, "y": y, "width": width, "height": height}
        text = {name: str(number) for name, number in numbers.items()}
        box_rows.append({**text, "study_level": "No", "label": layout.label})
    return box_rows


def _read_ranges(row: Row, columns: list[list[int]], first: int, table: Path) -> list[tuple[int, int]]:
    """Return the first and last index of each axis, counted from 0, both inclusive."""
    try:
        return [(int(float(row[low])) - first, int(float(row[high])) - first) for low, high in columns]
    except (IndexError, ValueError, OverflowError):
        raise BadInput("the position of a box is not a number", where=table.name, remedy="fix the table") from None


@dataclass(frozen=True)
class Box3D:
    """A 3-D box.

    Attributes:
        start, stop: (slice, row, column), half-open.
        label: finding, lower case.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    label: str

    def transform(self, matrix: NDArray[np.float64]) -> Box3D:
        """Return the same box on another grid.

        Args:
            matrix: (4, 4), maps (slice, row, column, 1) of this grid to the index of the other; a permutation and flips of axes.
        """
        corners = np.array([self.start, np.array(self.stop) - 1]) @ matrix[:3, :3].T + matrix[:3, 3]
        low, high = np.rint(corners.min(axis=0)).astype(int).tolist(), np.rint(corners.max(axis=0)).astype(int).tolist()
        return Box3D((low[0], low[1], low[2]), (high[0] + 1, high[1] + 1, high[2] + 1), self.label)


def parse_boxes(rows: list[dict[str, Any]]) -> list[Box3D]:
    """Return the boxes in rows of :func:`read_box_rows` or :func:`read_box3d_rows`; skip study-level rows, which have none."""
    boxes = []
    for row in rows:
        if row["x"] == "":
            continue
        start = (int(row["slice"]), int(row["y"]), int(row["x"]))
        size = (int(row.get("slices", 1)), int(row["height"]), int(row["width"]))
        stop = (start[0] + size[0], start[1] + size[1], start[2] + size[2])
        boxes.append(Box3D(start, stop, str(row["label"]).lower()))
    return boxes


def split_into_slices(boxes: Sequence[Box3D]) -> tuple[Box, ...]:
    """Return one 2-D box per slice of each 3-D box, without duplicates."""
    slice_boxes = (
        Box(index, box.start[1], box.start[2], box.stop[1], box.stop[2], box.label)
        for box in boxes
        for index in range(box.start[0], box.stop[0])
    )
    return tuple(dict.fromkeys(slice_boxes))


def derive_diagnosis(rows: list[dict[str, Any]], boxes: tuple[Box, ...]) -> dict[str, bool]:
    """Return finding -> present: the boxed findings are present; a study without boxes and labeled normal has no lesion."""
    is_normal = not boxes and any(str(row["label"]).lower().startswith("normal") for row in rows)
    return {"lesion": False} if is_normal else dict.fromkeys((box.label for box in boxes), True)
