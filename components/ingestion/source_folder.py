"""A source folder as its dataset card describes it, and the plan that formats add their series to.

Every name under ``data/`` is a pseudonym: file and folder names of the source may contain the patient's name.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from components.catalog import DatasetCard
from components.catalog.layout import BoxTable, Table
from components.ingestion.annotations.sidecars import SidecarIndex
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.file_names import contradict
from components.ingestion.formats.base import PlannedFile, PlannedSeries
from components.ingestion.planned_annotations import (
    PlannedFileBoxes,
    PlannedFindings,
    PlannedPerson,
    PlannedReport,
    PlannedTableBoxes,
)
from components.ingestion.quarantine import Rejection
from components.ingestion.source_listing import SourceListing
from components.ingestion.volume import Notice, QuarantineEntry


@dataclass
class Plan:
    """Series of a dataset to be ingested, and inputs that are rejected already.

    Attributes:
        listing: files of the source folder.
        series: volumes, in the order of formats, then of files.
        label_maps: case -> label maps of image files, for all images of that case.
        quarantined: rejected inputs.
        ignored: number of files that the card excludes.
        layout_files: number of files that a layout such as BIDS has beside its images.
        names: target of an image or label map -> path of its source in the folder.
        noticed: text -> files of the source that it is about.
    """

    listing: SourceListing
    series: list[PlannedSeries] = field(default_factory=list)
    label_maps: dict[str, list[PlannedFile]] = field(default_factory=lambda: defaultdict(list))
    quarantined: list[QuarantineEntry] = field(default_factory=list)
    ignored: int = 0
    layout_files: int = 0
    noticed: dict[str, set[Path]] = field(default_factory=lambda: defaultdict(set))
    names: dict[str, str] = field(default_factory=dict)
    _images: list[tuple[str, PlannedSeries, Path]] = field(default_factory=list)

    def add_image(self, case: str, series: PlannedSeries, path: Path) -> None:
        """Add a series, read from a file, that gets the label maps of its case."""
        self.series.append(series)
        self._images.append((case, series, path))

    def add_label_map(self, case: str, file: PlannedFile) -> None:
        """Add a label map for the images of a case."""
        self.label_maps[case].append(file)

    def exclude_patients(self, patients: frozenset[str]) -> None:
        """Remove the series of patients (pseudonyms)."""
        self.series = [series for series in self.series if series.patient not in patients]

    def reject(self, paths: Iterable[Path], rejection: Rejection) -> None:
        """List source files in the quarantine."""
        self.quarantined.append(self.listing.quarantine_entry(paths, rejection))

    def notice(self, paths: Iterable[Path], text: str) -> None:
        """Tell the user something about source files that are ingested all the same; equal texts are counted together."""
        self.noticed[text].update(paths)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """All notices, in the order of their texts."""
        return tuple(self.listing.notice(paths, text) for text, paths in sorted(self.noticed.items()))

    @property
    def inaccessible(self) -> list[QuarantineEntry]:
        """Rejected entries whose content is unknown."""
        return [entry for entry in self.quarantined if entry.kind == "inaccessible"]

    def attach_label_maps(self, folder: SourceFolder) -> None:
        """Add the label maps of each case to those of its images that may be theirs by name; reject those of no image.

        Where the card's ``case`` tells what belongs together, names are not compared.
        """
        attached: set[str] = set()
        for case, series, image in self._images:
            self.names.update({file.target: folder.relative(image) for file in series.files if file.role == "image"})
            for file in self.label_maps[case]:
                self.names[file.target] = folder.relative(file.source)
                if folder.layout.case or not contradict(folder.relative(file.source), folder.relative(image)):
                    series.files.append(file)
                    attached.add(file.target)
        for files in self.label_maps.values():
            for file in files:
                if file.target not in attached:
                    self.reject([file.source], _NO_LABELED_IMAGE if self._images or not self.series else _OTHER_FORM)


_NO_LABELED_IMAGE = Rejection(
    "label", "a label map of no image here: of no image of its patient, session and scan", "fix layout.case or layout.labels"
)


_OTHER_FORM = Rejection(
    "label",
    "a label map as an image file, while all images are DICOM: it is not matched to a DICOM series",
    "give it as DICOM segmentation (SEG), or convert the images to NIfTI",
)


class SourceFolder:
    """A source folder as its card describes it.

    Attributes:
        used: non-image files that belong to an image.
        without_patient: paths from which the card's expression finds no patient.
        boxes: (index in the card's ``layout.boxes``, table file).
        tables: (index in the card's ``layout.tables``, table file).
        rows_of_images: for images that share them: index of the table in the card, table file and key, in the order of the card.
    """

    def __init__(self, card: DatasetCard, source: Path, pseudonyms: Pseudonyms, other_files: list[Path]) -> None:
        """Match files of no known format (``other_files``) to the sidecars and tables of the card."""
        self.card, self.layout, self.source, self.pseudonyms = card, card.layout, source, pseudonyms
        self.sidecars = SidecarIndex(source, other_files)
        self.used: set[Path] = set()
        self.without_patient: set[str] = set()
        self._asked: dict[tuple[int, Path], set[str]] = defaultdict(set)
        self.rows_of_images: dict[tuple[tuple[int, Path, str], ...], None] = {}
        self.reviewed = self._select(other_files, self.layout.reviewed)
        box_globs = [table if isinstance(table, str) else table.path for table in self.layout.boxes]
        self.boxes = self._select_tables(other_files, box_globs)
        self.tables = self._select_tables(other_files, [table.path for table in self.layout.tables])
        self.used |= {*self.reviewed, *(path for _, path in (*self.boxes, *self.tables))}

    def relative(self, path: Path) -> str:
        """Return the path relative to the source folder (POSIX form)."""
        return path.relative_to(self.source).as_posix()

    def patient(self, relative: str) -> str:
        """Return the patient's pseudonym by the card's expression.

        Without an expression the whole dataset counts as one patient, so that no patient is in two splits.
        """
        name = match_group(self.layout.patient, relative) or ""
        if not name.strip():
            self.without_patient.add(relative)
        return self.pseudonyms.patient(name)

    def stem(self, patient: str, series_name: str) -> str:
        """Return the target path of a series, relative to ``data/``, without ending."""
        return f"{self.card.id}/{patient}/{self.pseudonyms.series(series_name)}"

    def sequence(self, relative: str) -> str:
        """Return the sequence that the card declares for an image; the longest matching text decides. "" = none."""
        matching = [text for text in self.layout.sequences if text in relative]
        return self.layout.sequences[max(matching, key=lambda text: (len(text), text))] if matching else ""

    def label_suffix(self, relative: str) -> str:
        """Return the suffix of a label map's target ("seg", or "tissue-<value>" for a map of one structure); "" for an image."""
        for value, pattern in sorted(self.layout.tissue_maps.items()):
            if matches_any(relative, [pattern]):
                return f"tissue-{value}"
        return "seg" if matches_any(relative, self.layout.labels) else ""

    def plan_tables(self, relative: str, dicom_patient: str | None, stem: str) -> list[PlannedFile]:
        """Plan the findings, report, sex and age from each of the card's tables that has a key for this image.

        Args:
            dicom_patient: Patient ID of a DICOM image; None for other formats.
            stem: target path of the series without ending.
        """
        files: list[PlannedFile] = []
        rows: list[tuple[int, Path, str]] = []
        for index, path in self.tables:
            table = self.layout.tables[index]
            key = self._key(table, relative, dicom_patient)
            if not key:
                continue
            self._asked[index, path].add(key)
            rows.append((index, path, key))
            if table.findings:
                files.append(PlannedFindings(path, f"{stem}.findings-{len(files)}.json", "annotation", table, key))
            if table.report is not None:
                files.append(PlannedReport(path, f"{stem}.report-{len(files)}.json", "annotation", table, key))
            if table.sex is not None or table.age is not None:
                files.append(PlannedPerson(path, f"{stem}.person-{len(files)}.json", "annotation", table, key))
        self.rows_of_images[tuple(rows)] = None
        return files

    def plan_boxes(
        self, relative: str, dicom_patient: str | None, stem: str, grid: tuple[int, ...], file_name: str = ""
    ) -> list[PlannedFile]:
        """Plan the boxes from each of the card's tables that has a key for this image.

        Args:
            grid: slices, rows and columns of the image; empty where they are not known.
            file_name: key in tables in the format of fastMRI+; "" for images that such tables do not describe.
        """
        files: list[PlannedFile] = []
        for index, path in self.boxes:
            table = self.layout.boxes[index]
            target = f"{stem}.boxes{f'-{len(files)}' if files else ''}.json"
            if isinstance(table, BoxTable):
                if key := self._key(table, relative, dicom_patient):
                    self._asked[-1 - index, path].add(key)
                    files.append(PlannedTableBoxes(path, target, "annotation", table, key, grid))
            elif file_name:
                self._asked[-1 - index, path].add(file_name)
                files.append(PlannedFileBoxes(path, target, "annotation", file_name, tuple(self.reviewed)))
        return files

    def table_keys(self) -> list[tuple[Table | None, Path, set[str]]]:
        """Return each table of the card, its file, and the keys of the images that were looked up in it so far."""
        tables = [(self.layout.tables[index], path, self._asked[index, path]) for index, path in self.tables]
        boxes = [(self.layout.boxes[index], path, self._asked[-1 - index, path]) for index, path in self.boxes]
        return [*tables, *((None if isinstance(table, str) else table, path, keys) for table, path, keys in boxes)]

    def _key(self, table: Table, relative: str, dicom_patient: str | None) -> str | None:
        """Return the value that a table's key column is searched for."""
        expression = table.image or (self.layout.patient if dicom_patient is None else None)
        return match_group(expression, relative) if expression or dicom_patient is None else dicom_patient

    def _select(self, paths: list[Path], globs: Iterable[str]) -> list[Path]:
        return [path for path in paths if matches_any(self.relative(path), globs)]

    def _select_tables(self, paths: list[Path], globs: Iterable[str]) -> list[tuple[int, Path]]:
        return [(index, path) for index, glob in enumerate(globs) for path in self._select(paths, [glob])]


def matches_any(relative: str, globs: Iterable[str]) -> bool:
    """Return whether one of the globs matches a relative path; ``*`` crosses folders."""
    return any(fnmatch.fnmatchcase(relative, pattern) for pattern in globs)


def match_group(expression: str | None, relative: str) -> str | None:
    """Return group 1 of the first match of an expression in a relative path; None without a match or an expression."""
    match = re.search(expression, relative) if expression else None
    return match[1] if match else None
