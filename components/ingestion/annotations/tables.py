"""Read annotation tables (CSV or Excel): rows, columns, and the rows of one image."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import zipfile
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from components.catalog.layout import Table
from components.errors import BadInput
from components.ingestion.annotations.encodings import decode_text
from components.ingestion.formats.gzipped import MAX_DECOMPRESSED_BYTES

Row = tuple[str, ...]
_ZIP_SIGNATURE = b"PK\3\4"
_LONGEST_CELL = 2**30
"""Characters of a cell, such as a report."""


def read_rows(table: Path) -> tuple[Row, ...]:
    """Read the rows of a table, including the titles.

    Args:
        table: CSV separated by comma, semicolon or tab, or an Excel workbook, of which the first sheet is read.

    Raises:
        BadInput: the file is not a readable table.
    """
    return _read_rows_cached(table, table.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _read_rows_cached(table: Path, modified_ns: int) -> tuple[Row, ...]:  # one table may annotate thousands of images
    with table.open("rb") as stream:
        if stream.read(4) == _ZIP_SIGNATURE:
            return _read_workbook(table)
    text = compose(decode_text(table.read_bytes())[0])
    delimiter = _delimiter(text, table.suffix.lower())
    try:
        return _parse(text, delimiter, strict=True)
    except csv.Error:
        rows = _parse(text, delimiter, strict=False)  # a quotation mark within a cell harms nothing
    for number, row in enumerate(rows, start=1):
        if any("\n" in cell or "\r" in cell for cell in row):
            what = f"the table cannot be read from row {number} on: a quotation mark that is neither closed nor doubled"
            raise BadInput(what, where=table.name, remedy="correct it, or save the table as CSV again")
    return rows


def _parse(text: str, delimiter: str, strict: bool) -> tuple[Row, ...]:
    """Return the rows that are not empty.

    Raises:
        csv.Error: ``strict``, and a quotation mark is neither closed nor doubled.
    """
    csv.field_size_limit(_LONGEST_CELL)
    return tuple(tuple(row) for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict) if row)


def _delimiter(text: str, suffix: str) -> str:
    """Return what separates the cells: a tab in a ``.tsv`` file that has one, else what the first line has most of.

    Titles may contain commas: ``age (years, rounded)``.
    """
    titles = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    return "\t" if suffix == ".tsv" and "\t" in titles else max(",;\t", key=titles.count)


def _read_workbook(table: Path) -> tuple[Row, ...]:
    """Read the first sheet of an Excel workbook."""
    import pandas as pd

    try:
        with zipfile.ZipFile(table) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_DECOMPRESSED_BYTES:
            raise BadInput("the decompressed workbook is too large", where=table.name, remedy="save it as CSV")
        sheet = pd.read_excel(table, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    except BadInput:
        raise
    except Exception as error:  # a damaged file may raise any exception in zipfile, openpyxl or pandas
        raise BadInput(f"the workbook cannot be read ({type(error).__name__})", where=table.name, remedy="save it as CSV") from None
    return tuple(tuple(map(compose, row)) for row in sheet.fillna("").itertuples(index=False, name=None))


def compose(text: str) -> str:
    """Return text with composed letters (Unicode NFC): ``ö`` has another form in names of files that were copied from a Mac."""
    return unicodedata.normalize("NFC", text)


def read_titles(table: Path) -> list[str]:
    """Return the titles of the columns; empty for an empty table."""
    rows = read_rows(table)
    return [title.strip() for title in rows[0]] if rows else []


def column_index(column: str | int, titles: list[str], table: Path) -> int:
    """Return the index of a column that a card names by title or index.

    Raises:
        BadInput: the table has no such column.
    """
    if isinstance(column, int):
        return column
    if column not in titles:
        raise BadInput(f"no column {column!r}", where=table.name, remedy="fix layout.tables or layout.boxes of the card")
    return titles.index(column)


def find_rows(table: Path, layout: Table, key: str) -> tuple[list[str], list[Row]]:
    """Return the titles (empty if the card numbers the columns) and the rows with a key.

    Raises:
        BadInput: the table lacks the key column.
    """
    titles, rows, index = _content(table, layout)
    key = compose(key)
    return titles, [row for row in rows if len(row) > index and row[index].strip() == key]


def group_rows(table: Path, layout: Table) -> tuple[list[str], dict[str, list[Row]]]:
    """Return the titles (empty if the card numbers the columns) and key -> its rows.

    Raises:
        BadInput: the table lacks the key column.
    """
    titles, rows, index = _content(table, layout)
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if len(row) > index:
            groups[row[index].strip()].append(row)
    return titles, groups


def _content(table: Path, layout: Table) -> tuple[list[str], tuple[Row, ...], int]:
    """Return the titles, the rows behind them, and the index of the key column."""
    has_titles = isinstance(layout.key, str)
    titles = read_titles(table) if has_titles else []
    return titles, read_rows(table)[1 if has_titles else 0 :], column_index(layout.key, titles, table)
