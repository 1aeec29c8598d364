"""Findings, sex and age of patients or examinations, from tables beside the images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from components.catalog.layout import LabelTable
from components.ingestion.annotations.tables import column_index, find_rows
from components.ingestion.deidentification.deidentify import parse_age_years, parse_sex


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
    parsers: dict[str, tuple[str | int | None, Callable[[str], str | float | None]]] = {
        "PatientSex": (layout.sex, parse_sex),
        "PatientAge": (layout.age, _parse_age_cell),
    }
    demographics: dict[str, str | float] = {}
    for name, (column, parse) in parsers.items():
        if column is None:
            continue
        index = column_index(column, titles, table)
        values = {parse(row[index]) for row in rows if len(row) > index} - {None}
        if len(values) == 1 and (value := values.pop()) is not None:
            demographics[name] = value
    return demographics


def _parse_age_cell(cell: str) -> float | None:
    """Parse ``34``, ``34.5``, ``89+`` or the DICOM form ``034Y``; return None for anything else."""
    text = cell.strip().removesuffix("+")
    try:
        return parse_age_years(float(text))
    except ValueError:
        return parse_age_years(text)
