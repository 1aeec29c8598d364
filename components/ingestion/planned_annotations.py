"""Planned JSON files beside an image: sidecar, lesion boxes, findings, report, sex and age."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import override

from components.catalog.layout import BoxTable, LabelTable
from components.files import read_json, to_json
from components.ingestion.annotations import finding_tables, lesion_boxes, report_tables
from components.ingestion.annotations.sidecars import image_stem, merge_fields, readable
from components.ingestion.deidentification.deidentify import clean_sidecar
from components.ingestion.formats.base import Output, PlannedFile, ReadBackError, WriteContext


class JsonOutput(Output):
    """A JSON document."""

    def __init__(self, value: Any) -> None:
        """Encode a document."""
        self._text = to_json(value)

    @override
    def write(self, path: Path) -> None:
        path.write_text(self._text)

    @override
    def check(self, path: Path) -> None:
        if to_json(read_json(path)) != self._text:
            raise ReadBackError("another JSON document")


@dataclass(frozen=True)
class PlannedJson(PlannedFile):
    """An annotation that is written as JSON."""

    @abstractmethod
    def content(self, context: WriteContext) -> Any:
        """Return the de-identified content."""

    @override
    def prepare(self, context: WriteContext) -> JsonOutput:
        return JsonOutput(self.content(context))


@dataclass(frozen=True)
class PlannedSidecar(PlannedJson):
    """A BIDS sidecar. A source that cannot be read is left out: planning has listed it.

    Attributes:
        inherited: sidecars of upper folders, the most general first; fields of the source override theirs.
        sequence: sequence that the card declares; "" = none.
    """

    inherited: tuple[Path, ...]
    sequence: str

    @classmethod
    def of(cls, image: Path, sidecars: tuple[Path, ...], target: str, sequence: str) -> PlannedSidecar:
        """Plan the sidecar of an image from its source sidecars; without any, the file that would be it (it need not exist)."""
        source = sidecars[-1] if sidecars else image.with_name(f"{image_stem(image)}.json")
        return cls(source, target, "annotation", sidecars[:-1], sequence)

    @property
    @override
    def sources(self) -> tuple[Path, ...]:
        return (*self.inherited, self.source)

    @override
    def content(self, context: WriteContext) -> Any:
        return clean_sidecar(merge_fields(readable(path for path in self.sources if path.is_file())), self.sequence)


@dataclass(frozen=True)
class PlannedFileBoxes(PlannedJson):
    """Lesion boxes of one file from a table in the format of fastMRI+.

    Attributes:
        file_name: value of the table's file column.
        reviewed: lists of files that were reviewed for lesions.
    """

    file_name: str
    reviewed: tuple[Path, ...]

    @property
    @override
    def sources(self) -> tuple[Path, ...]:
        return (*self.reviewed, self.source)

    def content(self, context: WriteContext) -> list[dict[str, Any]]:
        """Return the rows about the file; for a reviewed file without any, one row that states that it is normal."""
        rows = lesion_boxes.read_box_rows(self.source, self.file_name, context.card)
        if rows is None and lesion_boxes.is_reviewed(list(self.reviewed), self.file_name):
            blank = dict.fromkeys(lesion_boxes.BOX_COLUMNS, "")
            return [{**blank, "study_level": "Yes", "label": "normal"}]
        return rows or []


@dataclass(frozen=True)
class PlannedTableBoxes(PlannedJson):
    """3-D lesion boxes of one image from a table that the card declares.

    Attributes:
        table: columns of the table.
        key: value of the table's key column.
        grid: slices, rows and columns of the image; empty where they are not known.
    """

    table: BoxTable
    key: str
    grid: tuple[int, ...]

    @override
    def content(self, context: WriteContext) -> list[dict[str, Any]]:
        return lesion_boxes.read_box3d_rows(self.source, self.table, self.key, self.grid)


@dataclass(frozen=True)
class _PlannedTableRow(PlannedJson):
    """An annotation from the row of a table of patients or examinations.

    Attributes:
        table: columns of the table.
        key: value of the table's key column.
    """

    table: LabelTable
    key: str


@dataclass(frozen=True)
class PlannedFindings(_PlannedTableRow):
    """Findings, each present or absent."""

    @override
    def content(self, context: WriteContext) -> dict[str, bool]:
        return finding_tables.read_findings(self.source, self.table, self.key)


@dataclass(frozen=True)
class PlannedReport(_PlannedTableRow):
    """Text of a radiologist's report."""

    @override
    def content(self, context: WriteContext) -> dict[str, str]:
        return {"text": report_tables.read_report(self.source, self.table, self.key)}


@dataclass(frozen=True)
class PlannedPerson(_PlannedTableRow):
    """Sex and age of the patient."""

    @override
    def content(self, context: WriteContext) -> dict[str, str | float]:
        return finding_tables.read_demographics(self.source, self.table, self.key)
