"""Tables beside images: lesion boxes in fastMRI+'s form or another, and findings, sex and age of patients or examinations."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.catalog.cards import BoxTable, DatasetCard, LabelTable, Table
from components.errors import BadInput
from components.ingestion.deidentification import allowlists
from components.ingestion.deidentification.deidentify import age_years, sex
from components.ingestion.formats.gzipped import MAX_DECOMPRESSED_BYTES
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume import Box

BOX_COLUMNS = ("slice", "study_level", "x", "y", "width", "height", "label")
_ZIP = b"PK\3\4"
_NUMBERS = ("slice", "x", "y", "width", "height")


@lru_cache(maxsize=16)
def _rows(table: Path, changed: int) -> tuple[tuple[str, ...], ...]:  # one table serves thousands of images
    with table.open("rb") as packed:
        if packed.read(4) == _ZIP:
            return _sheet(table)
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)
            return tuple(tuple(row) for row in csv.reader(stream, delimiter=delimiter) if row)
    except csv.Error:
        raise BadInput("the table cannot be read as CSV", where=table.name, remedy="save it as CSV") from None


def _sheet(table: Path) -> tuple[tuple[str, ...], ...]:
    """The first sheet of an Excel workbook."""
    import pandas as pd

    try:
        with zipfile.ZipFile(table) as parts:
            size = sum(part.file_size for part in parts.infolist())
        if size > MAX_DECOMPRESSED_BYTES:
            raise BadInput("a workbook that unpacks to more than is believed", where=table.name, remedy="save it as CSV")
        sheet = pd.read_excel(table, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    except BadInput:
        raise
    except Exception as error:  # whatever a damaged file makes of zipfile, openpyxl and pandas
        raise BadInput(
            f"a workbook that cannot be read ({type(error).__name__})", where=table.name, remedy="save it as CSV"
        ) from None
    return tuple(tuple(row) for row in sheet.fillna("").itertuples(index=False, name=None))


def rows(table: Path) -> tuple[tuple[str, ...], ...]:
    """The rows of a table (comma, semicolon or tab, or an Excel workbook's first sheet), titles included.

    Raises:
        BadInput: no table.
    """
    return _rows(table, table.stat().st_mtime_ns)


def box_rows(table: Path, file_name: str, card: DatasetCard) -> list[dict[str, Any]] | None:
    """Rows of a fastMRI+ table about one file, without its name; None where it is not in the table.

    A label that neither fastMRI+ nor the card has published reads ``finding``.

    Raises:
        BadInput: columns missing, or a place that is no number.
    """
    titles = [title.strip() for title in rows(table)[0]] if rows(table) else []
    missing = {"file", *BOX_COLUMNS} - set(titles)
    if missing:
        raise BadInput(f"columns missing: {', '.join(sorted(missing))}", where=table.name, remedy="give fastMRI+'s columns")
    own = {name.lower() for name in card.label_map.values()}
    found = []
    for row in _about(table, titles, file_name):
        label = row["label"].strip()
        known = label.lower() in allowlists.FINDINGS or label.lower() in own
        try:
            numbers = {name: str(int(float(row[name]))) if row[name].strip() else "" for name in _NUMBERS}
        except (ValueError, OverflowError):
            raise BadInput("a box whose place is no number", where=table.name, remedy="mend the table") from None
        found.append(
            {**numbers, "study_level": "Yes" if row["study_level"] == "Yes" else "No", "label": label if known else "finding"}
        )
    return found or None


def _about(table: Path, titles: list[str], file_name: str) -> Iterator[dict[str, str]]:
    place = titles.index("file")
    for row in rows(table)[1:]:
        if len(row) == len(titles) and row[place] == file_name:
            yield dict(zip(titles, row, strict=True))


def is_reviewed(lists: list[Path], file_name: str) -> bool:
    """Whether a file is in a list of those that were looked at."""
    return any(row[0].strip() == file_name for one in lists for row in rows(one))


def block_rows(table: Path, layout: BoxTable, key: str, grid: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of a table of 3-D boxes about one image, in the form of :func:`box_rows` with ``slices``, how many a box covers.

    Args:
        grid: slices, rows and columns of the image; empty where they are not known.

    Raises:
        BadInput: a column of the card is not in the table, or a place is no number.
        UnsupportedInput: a box beyond the image.
    """
    titles, about = matching_rows(table, layout, key)
    sides = [[place_of(column, titles, table) for column in pair] for pair in (layout.slices, layout.rows, layout.columns)]
    found = []
    for row in about:
        try:
            places = [[int(float(row[column])) - layout.first for column in pair] for pair in sides]
        except (IndexError, ValueError, OverflowError):
            raise BadInput("a box whose place is no number", where=table.name, remedy="mend the table") from None
        if any(low < 0 or low > high for low, high in places) or any(
            high >= side for (_, high), side in zip(places, grid, strict=False)
        ):
            raise UnsupportedInput(
                "label", "a box beyond the image", where=table.name, remedy="mend the table, or first and image of the card's table"
            )
        (depth, height, width), (place, y, x) = (high - low + 1 for low, high in places), (low for low, _ in places)
        numbers = {"slice": place, "slices": depth, "x": x, "y": y, "width": width, "height": height}
        found.append({**{name: str(number) for name, number in numbers.items()}, "study_level": "No", "label": layout.label})
    return found


@dataclass(frozen=True)
class Block:
    """A 3-D box.

    Attributes:
        start, stop: (slice, row, column), half-open.
        label: finding, lower case.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    label: str

    def turned(self, matrix: NDArray[np.float64]) -> Block:
        """The same box on another grid.

        Args:
            matrix: (4, 4), (slice, row, column, 1) of this grid -> index of the other: axes are swapped and turned, no more.
        """
        corners = np.array([self.start, np.array(self.stop) - 1]) @ matrix[:3, :3].T + matrix[:3, 3]
        low, high = np.rint(corners.min(axis=0)).astype(int).tolist(), np.rint(corners.max(axis=0)).astype(int).tolist()
        return Block((low[0], low[1], low[2]), (high[0] + 1, high[1] + 1, high[2] + 1), self.label)


def blocks_of(rows: list[dict[str, Any]]) -> list[Block]:
    """The boxes among rows of :func:`box_rows` or :func:`block_rows`; a row that is about the whole study has none."""
    found = []
    for row in rows:
        if row["x"] != "":
            start = (int(row["slice"]), int(row["y"]), int(row["x"]))
            size = (int(row.get("slices", 1)), int(row["height"]), int(row["width"]))
            stop = (start[0] + size[0], start[1] + size[1], start[2] + size[2])
            found.append(Block(start, stop, str(row["label"]).lower()))
    return found


def boxes_of(blocks: list[Block]) -> tuple[Box, ...]:
    """A box for each slice of each block; of equal ones, one."""
    every = (
        Box(number, block.start[1], block.start[2], block.stop[1], block.stop[2], block.label)
        for block in blocks
        for number in range(block.start[0], block.stop[0])
    )
    return tuple(dict.fromkeys(every))


def diagnosis_of(rows: list[dict[str, Any]], boxes: tuple[Box, ...]) -> dict[str, bool]:
    """What is boxed is there; where a study without boxes is called normal, the diagnosis says so."""
    normal = not boxes and any(str(row["label"]).lower().startswith("normal") for row in rows)
    return {"lesion": False} if normal else dict.fromkeys((box.label for box in boxes), True)


def place_of(column: str | int, titles: list[str], table: Path) -> int:
    """The number of a column that a card names.

    Raises:
        BadInput: the table has no such column.
    """
    if isinstance(column, int):
        return column
    if column not in titles:
        raise BadInput(f"no column {column!r}", where=table.name, remedy="mend the card's layout.tables or layout.boxes")
    return titles.index(column)


def matching_rows(table: Path, layout: Table, key: str) -> tuple[list[str], list[tuple[str, ...]]]:
    """Titles (none where the card counts columns) and the rows that a key names.

    Raises:
        BadInput: the key's column is not in the table.
    """
    titled = isinstance(layout.key, str)
    content = rows(table)
    titles = [title.strip() for title in content[0]] if titled and content else []
    at = place_of(layout.key, titles, table)
    return titles, [row for row in content[1 if titled else 0 :] if len(row) > at and row[at].strip() == key]


def findings_of(table: Path, layout: LabelTable, key: str) -> dict[str, bool]:
    """Finding -> present, of the row that a key names; what the table leaves open is not in it.

    Raises:
        BadInput: a column of the card is not in the table, or two rows of the key contradict each other.
    """
    titles, about = matching_rows(table, layout, key)
    columns = {place_of(column, titles, table): finding for column, finding in layout.findings.items()}
    found: dict[str, bool] = {}
    for row in about:
        if len(row) > max(columns, default=0):
            for column, finding in columns.items():
                present = layout.values.get(row[column].strip().lower())
                if present is not None:
                    found[finding] = found.get(finding, False) or present
    return found


def person_of(table: Path, layout: LabelTable, key: str) -> dict[str, str | float]:
    """Sex and age in years (90 and over as 90) of the person whom a key names, by the names of sidecars; a field that the table
    leaves open, or about which its rows contradict each other, is not in it.

    Raises:
        BadInput: a column of the card is not in the table.
    """
    titles, about = matching_rows(table, layout, key)
    readers: dict[str, tuple[str | int | None, Callable[[str], str | float | None]]] = {
        "PatientSex": (layout.sex, sex),
        "PatientAge": (layout.age, _years),
    }
    found: dict[str, str | float] = {}
    for name, (column, read) in readers.items():
        place = place_of(column, titles, table) if column is not None else None
        said = {read(row[place]) for row in about if len(row) > place} - {None} if place is not None else set()
        if len(said) == 1 and (value := said.pop()) is not None:
            found[name] = value
    return found


def _years(cell: str) -> float | None:
    """``34``, ``34.5``, ``89+`` or DICOM's ``034Y``; None for anything else."""
    text = cell.strip().removesuffix("+")
    try:
        return age_years(float(text))
    except ValueError:
        return age_years(text)
