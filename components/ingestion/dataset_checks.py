"""Findings about a dataset as a whole: globs that match no file, images without a patient, tables whose keys fit no image."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from components.catalog.layout import LabelTable, Table, glob_sections
from components.errors import BadInput
from components.ingestion.annotations.finding_tables import Aspect, stated_values
from components.ingestion.annotations.tables import Row, column_index, compose, read_rows, read_titles
from components.ingestion.source_folder import Plan, SourceFolder, matches_any

_NOTHING = frozenset(("", "n/a", "na", "nan", "none", "unknown", "-", "?"))
"""Cells, in lower case, by which a table states that a finding is unknown."""


def check_dataset(folder: SourceFolder, plan: Plan) -> None:
    """Add notices about a dataset to its plan.

    Raises:
        BadInput: the globs of images match no file.
    """
    _check_globs(folder, plan)
    _check_patients(folder, plan)
    for table, path, keys in folder.table_keys():
        _check_table(table, path, keys, plan)
    _check_contradictions(folder, plan)


def _check_globs(folder: SourceFolder, plan: Plan) -> None:
    """Note sections of the layout (labels, tables, ...) none of whose globs matches a file.

    Raises:
        BadInput: no image matches the globs of images.
    """
    files = list(plan.listing)
    names = [folder.relative(path) for path in files]
    for section, patterns in glob_sections(folder.layout).items():
        if section != "ignored" and files and not any(matches_any(name, patterns) for name in names):
            shown = ", ".join(map(repr, patterns[:3])) + (", ..." if len(patterns) > 3 else "")
            if section == "images":
                what = f"layout.images of the card matches none of {len(files)} files: {shown}"
                raise BadInput(what, where=folder.card.id, remedy="fix the glob, or give the folder that it is relative to")
            plan.notice(files, f"layout.{section} of the card matches none of the files: {shown}; fix the glob")


def _check_patients(folder: SourceFolder, plan: Plan) -> None:
    """Note images that count as one patient because the card does not tell whose they are."""
    paths = [folder.source / relative for relative in sorted(folder.without_patient)]
    if len(paths) > 1 and folder.layout.patient is None:
        plan.notice(paths, "no layout.patient in the card: all images count as one patient, in one split; name the patient")
    elif paths and folder.layout.patient is not None:
        plan.notice(paths, "layout.patient does not match the path: these files count as one patient; fix the expression")


def _check_table(table: Table | None, path: Path, keys: set[str], plan: Plan) -> None:
    """Note a table whose keys fit no image or not all, columns of one name, and findings that the card's values do not name.

    Args:
        table: columns that the card names; None for a table in the format of fastMRI+.
        keys: those of the images.
    """
    column = table.key if table is not None else "file"
    try:
        titles = read_titles(path) if isinstance(column, str) else []
        index = column_index(column, titles, path)
        content = read_rows(path)[1 if titles else 0 :]
        rows = [row[index].strip() for row in content if len(row) > index]
        unnamed = _columns_without_values(table, titles, content, path)
    except BadInput:
        return  # writing the annotation reports the fault
    doubled = [title for title, count in Counter(titles).items() if count > 1 and title in _columns_of(table)]
    if doubled:
        plan.notice([path], f"a table with two columns {doubled[0]!r}: the first is used; remove or rename the other")
    for column, cells in unnamed.items():
        text = f"a table with {cells} cells in the column {column!r}, none of which is one of the card's values"
        plan.notice([path], f"{text}: the finding is unknown; fix values of layout.tables")
    keys = {compose(key) for key in keys}
    found = keys & set(rows)
    if not keys:
        plan.notice([path], "a table for which no image has a key; fix its image expression, or layout.patient")
    elif not rows:
        plan.notice([path], "a table without rows")
    elif not found:
        plan.notice(
            [path],
            f"a table of {len(rows)} rows whose keys fit none of the {len(keys)} keys of the images: "
            f"they look like {_shape(rows)}, those of the images like {_shape(sorted(keys))}; fix its key or image",
        )
    elif len(found) < len(keys):
        plan.notice([path], f"a table without a row for {len(keys) - len(found)} of the {len(keys)} keys of the images")


_OUTCOMES: dict[Aspect, str] = {
    "sex": "it is unknown, unless a header states it",
    "age": "it is unknown, unless a header states it",
    "finding": "it counts as present",
}
"""Meaning of a column -> value that ingestion uses when rows with the same key contradict each other in it."""
_OTHER_TABLE = "another table decides it"
_Stated = Mapping[tuple[Aspect, str | int], set[Any]]
"""(meaning of a column, its name or number) -> all known values in the rows with one key."""


class _ImageRows(NamedTuple):
    """The rows of one table about an image."""

    table: LabelTable
    path: Path
    key: str
    stated: _Stated

    def values(self, fact: str) -> set[Any]:
        """Return the values of a fact in all columns that state it."""
        found = (values for (aspect, column), values in self.stated.items() if self.fact(aspect, column) == fact)
        return set().union(*found)

    def fact(self, aspect: Aspect, column: str | int) -> str:
        """Return the name of the finding of a column, or what else it states."""
        return self.table.findings[column] if aspect == "finding" else aspect


def _check_contradictions(folder: SourceFolder, plan: Plan) -> None:
    """Note columns whose rows about one key disagree in sex, age or a finding, and tables that disagree about an image.

    Two visits have two ages, and a table of lesions has several findings; but a participant who is listed twice with two diagnoses
    is a fault that only the owner of the table can correct.
    """
    contradicted: dict[tuple[Path, str | int, str], set[str]] = defaultdict(set)
    apart: dict[str, list[set[Path]]] = defaultdict(list)
    for tables in _tables_of_images(folder):
        for place, rows in enumerate(tables):
            for (aspect, column), values in rows.stated.items():
                if len(values) > 1:
                    outcome = _outcome(aspect, rows.fact(aspect, column), place, tables)
                    contradicted[rows.path, column, outcome].add(rows.key)
        for fact in sorted({rows.fact(*stated) for rows in tables for stated in rows.stated}):
            certain = {rows.path: values.pop() for rows in tables if len(values := rows.values(fact)) == 1}
            if len(set(certain.values())) > 1:
                apart[fact].append(set(certain))
    for (path, column, outcome), keys in contradicted.items():
        text = f"a table whose rows about {len(keys)} of its keys contradict each other in the column {column!r}"
        plan.notice([path], f"{text}: {outcome}; correct the table, or choose a key that one row has")
    for fact, paths in apart.items():
        text = f"tables that contradict each other about {fact!r} for {len(paths)} of their keys"
        plan.notice(set().union(*paths), f"{text}: that which the card names last is used; correct one of them")


def _tables_of_images(folder: SourceFolder) -> Iterator[list[_ImageRows]]:
    """Yield the rows of all tables about each image, once for images of the same rows. Images are compared, not keys: that of a
    patient in one table may be that of a scan in another.
    """
    tables: dict[tuple[int, Path], Mapping[str, _Stated]] = {}
    for index, path in folder.tables:
        try:
            tables[index, path] = stated_values(path, folder.layout.tables[index])
        except BadInput:
            continue  # writing the annotation reports the fault
    for rows in folder.rows_of_images:
        yield [
            _ImageRows(folder.layout.tables[index], path, key, tables[index, path].get(compose(key), {}))
            for index, path, key in rows
            if (index, path) in tables
        ]


def _outcome(aspect: Aspect, fact: str, place: int, tables: Sequence[_ImageRows]) -> str:
    """Return what becomes of a fact that the rows of one of an image's tables contradict.

    Args:
        place: of this table. A finding is that of the last table that states it; sex and age may be those of any other.
    """
    if aspect == "finding":
        is_elsewhere = any(rows.values(fact) for rows in tables[place + 1 :])
    else:
        is_elsewhere = any(len(rows.values(fact)) == 1 for rows in (*tables[:place], *tables[place + 1 :]))
    return _OTHER_TABLE if is_elsewhere else _OUTCOMES[aspect]


def _columns_without_values(table: Table | None, titles: list[str], rows: Sequence[Row], path: Path) -> dict[str | int, int]:
    """Return columns of findings none of whose cells is one of the card's values, with the number of cells that say something.

    Raises:
        BadInput: the table lacks a column of the card.
    """
    found: dict[str | int, int] = {}
    if not isinstance(table, LabelTable):
        return found
    for column in table.findings:
        index = column_index(column, titles, path)
        cells = [cell for row in rows if len(row) > index and (cell := row[index].strip().lower()) not in _NOTHING]
        if cells and not table.values.keys() & cells:
            found[column] = len(cells)
    return found


def _columns_of(table: Table | None) -> set[str]:
    """Return the columns that a card uses of a table."""
    if table is None:
        return {"file"}
    fields = table.model_dump(exclude={"path", "image", "label", "first", "values"})
    values = [item for value in fields.values() for item in (value if isinstance(value, list | tuple | dict) else [value])]
    return {str(value) for value in values if isinstance(value, str)}


def _shape(keys: list[str]) -> str:
    """Return the form of the first key: letters as ``a`` or ``A``, digits as ``9``; the key itself may name a patient."""
    first = next((key for key in keys if key), "")
    letters = re.sub(r"[^\W\d_]", lambda letter: "A" if letter[0].isupper() else "a", first)
    return repr(re.sub(r"\d", "9", letters))
