"""Tables beside images: lesion boxes in fastMRI+'s form, and findings, sex and age of patients or examinations."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from components.catalog.cards import DatasetCard, LabelTable
from components.errors import BadInput
from components.ingestion import vocabulary
from components.ingestion.deidentify import age_years, sex
from components.ingestion.volume import Box

BOX_COLUMNS = ("slice", "study_level", "x", "y", "width", "height", "label")
_NUMBERS = ("slice", "x", "y", "width", "height")


@lru_cache(maxsize=16)
def _rows(table: Path, changed: int) -> tuple[tuple[str, ...], ...]:  # one table serves thousands of images
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            head = stream.readline()
            stream.seek(0)
            delimiter = max(",;\t", key=head.count)
            return tuple(tuple(row) for row in csv.reader(stream, delimiter=delimiter) if row)
    except csv.Error:
        raise BadInput("the table cannot be read as CSV", where=table.name, remedy="save it as CSV") from None


def rows(table: Path) -> tuple[tuple[str, ...], ...]:
    """The rows of a table (comma, semicolon or tab), titles included.

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
        known = label.lower() in vocabulary.FINDINGS or label.lower() in own
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


def boxes_and_diagnosis(rows: list[dict[str, Any]]) -> tuple[tuple[Box, ...], dict[str, bool]]:
    """Boxes on the turned image's pixels; where the study is normal, the diagnosis says so."""
    boxes = tuple(
        Box(int(row["slice"]), int(row["y"]), int(row["x"]), int(row["y"]) + int(row["height"]),
            int(row["x"]) + int(row["width"]), str(row["label"]).lower())
        for row in rows if row["x"] != ""
    )  # fmt: skip
    normal = not boxes and any(str(row["label"]).lower().startswith("normal") for row in rows)
    return boxes, {"lesion": False} if normal else dict.fromkeys((box.label for box in boxes), True)


def place_of(column: str | int, titles: list[str], table: Path) -> int:
    """The number of a column that a card names.

    Raises:
        BadInput: the table has no such column.
    """
    if isinstance(column, int):
        return column
    if column not in titles:
        raise BadInput(f"no column {column!r}", where=table.name, remedy="mend the card's layout.tables")
    return titles.index(column)


def matching_rows(table: Path, layout: LabelTable, key: str) -> tuple[list[str], list[tuple[str, ...]]]:
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
