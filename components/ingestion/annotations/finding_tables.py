"""Findings, sex and age of patients or examinations, from tables beside the images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from components.catalog.layout import LabelTable
from components.ingestion.annotations.tables import Row, column_index, find_rows, group_rows
from components.ingestion.deidentification.deidentify import parse_age_years, parse_sex

Aspect = Literal["sex", "age", "finding"]
"""Meaning of a table column: the sex of a patient, the age, or whether a finding is present."""
Parser = Callable[[str], str | float | bool | None]


def read_findings(table: Path, layout: LabelTable, key: str) -> dict[str, bool]:
    """Return finding -> present from the rows with a key; present if any row says so. Unknown findings are omitted.

    Raises:
        BadInput: the table lacks a column of the card.
    """
    titles, rows = find_rows(table, layout, key)
    columns = {column_index(column, titles, table): finding for column, finding in layout.findings.items()}
    findings: dict[str, bool] = {}
    for row in rows:
        if len(row) <= max(columns, default=0):
            continue
        for column, finding in columns.items():
            is_present = layout.values.get(row[column].strip().lower())
            if is_present is not None:
                findings[finding] = findings.get(finding, False) or is_present
    return findings


def read_demographics(table: Path, layout: LabelTable, key: str) -> dict[str, str | float]:
    """Return sex and age in years (90 and over as 90) of the patient with a key, under the field names of sidecars.

    A field is omitted if the table has no value, or if its rows contradict each other.

    Raises:
        BadInput: the table lacks a column of the card.
    """
    titles, rows = find_rows(table, layout, key)
    parsers = {"PatientSex": (layout.sex, parse_sex), "PatientAge": (layout.age, _parse_age_cell)}
    demographics: dict[str, str | float] = {}
    for name, (column, parse) in parsers.items():
        if column is None:
            continue
        values = _values(rows, column_index(column, titles, table), parse)
        if len(values) == 1:
            demographics[name] = values.pop()
    return demographics


def stated_values(table: Path, layout: LabelTable) -> dict[str, dict[tuple[Aspect, str | int], set[Any]]]:
    """Return key -> (what a column states, column) -> the different known values in the rows with this key.

    Raises:
        BadInput: the table lacks a column of the card.
    """
    titles, rows_of = group_rows(table, layout)
    columns: list[tuple[Aspect, str | int | None, Parser]] = [("sex", layout.sex, parse_sex), ("age", layout.age, _parse_age_cell)]
    columns += [("finding", column, lambda cell: layout.values.get(cell.strip().lower())) for column in layout.findings]
    named = [(aspect, column, parse) for aspect, column, parse in columns if column is not None]
    indices = [column_index(column, titles, table) for _, column, _ in named]
    return {
        key: {(aspect, column): _values(rows, index, parse) for (aspect, column, parse), index in zip(named, indices, strict=True)}
        for key, rows in rows_of.items()
    }


def _values(rows: Sequence[Row], index: int, parse: Parser) -> set[Any]:
    """Return the different values of a column that are known."""
    return {parse(row[index]) for row in rows if len(row) > index} - {None}


def _parse_age_cell(cell: str) -> float | None:
    """Parse ``34``, ``34.5``, ``89+`` or the DICOM form ``034Y``; return None for anything else."""
    text = cell.strip().removesuffix("+")
    try:
        return parse_age_years(float(text))
    except ValueError:
        return parse_age_years(text)
