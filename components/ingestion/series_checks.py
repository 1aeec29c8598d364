"""Checks of cleaned series: complete, with labels on their grid, and without duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from components.catalog import DatasetCard
from components.errors import OmniMRIError
from components.ingestion.cleaning import CleanedFile
from components.ingestion.formats.base import PlannedFile, PlannedSeries
from components.ingestion.formats.label_maps import TISSUE_INFIX
from components.ingestion.manifest import files_of
from components.ingestion.quarantine import Rejection
from components.ingestion.series_planner import Mapper
from components.ingestion.source_folder import Plan
from components.ingestion.volume import SourceFile, SourceSeries
from components.ingestion.volume_reader import read_volume
from components.provenance import digest


@dataclass(frozen=True)
class CleanedSeries:
    """A planned series with its files under ``data/``."""

    planned: PlannedSeries
    series: SourceSeries

    @property
    def id(self) -> str:
        """Unique name within the dataset."""
        return f"{self.series.patient_id}/{self.series.series_id}"


class SeriesChecks:
    """Checks that remove series or labels from a dataset and list them in the quarantine."""

    def __init__(self, plan: Plan, files: Mapping[str, PlannedFile], results: Mapping[str, CleanedFile]) -> None:
        """Check the series of a plan.

        Args:
            files: target -> planned file.
            results: target -> cleaned file.
        """
        self._plan, self._files, self._results = plan, files, results

    def run(self, card: DatasetCard, data: Path, mapper: Mapper) -> list[SourceSeries]:
        """Return the series that pass all checks, in the order of the plan; reject files that could not be written."""
        for target, result in self._results.items():
            if result.rejection is not None:
                self._plan.reject([self._files[target].source], result.rejection)
        cleaned = [series for planned in self._plan.series if (series := self._collect(card.id, planned)) is not None]
        complete = [item for item in cleaned if self._is_complete(item)]
        labeled = self._match_labels(complete, card, data, mapper)
        return [item.series for item in self._without_duplicates(labeled)]

    def _collect(self, dataset_id: str, planned: PlannedSeries) -> CleanedSeries | None:
        """Return a series with its written files; None if no image was written."""
        files: dict[str, list[SourceFile]] = {"image": [], "label": [], "annotation": []}
        for file in planned.files:
            written = self._results[file.target].file
            if written is not None:
                files[file.role].append(written)
        if not files["image"]:
            return None
        images, labels, annotations = (tuple(files[role]) for role in ("image", "label", "annotation"))
        series = SourceSeries(dataset_id, planned.patient, planned.series_id, planned.reader, images, labels, annotations)
        return CleanedSeries(planned, _with_md5(series))

    def _is_complete(self, cleaned: CleanedSeries) -> bool:
        """Return whether all slices of a series were written; reject the others if one left a gap."""
        planned = sum(file.role == "image" for file in cleaned.planned.files)
        written = len(cleaned.series.files)
        if written in (planned, 1):
            return True
        reason = f"slices missing: {planned - written} of {planned} could not be read"
        self._reject(cleaned.series.files, Rejection("geometry", reason, "export the whole series again"))
        return False

    def _match_labels(self, cleaned: list[CleanedSeries], card: DatasetCard, data: Path, mapper: Mapper) -> list[CleanedSeries]:
        """Return each series with the label map on its grid, if there is one; reject label maps that match no image."""
        with_labels = [item for item in cleaned if item.series.labels]
        if not with_labels:
            return cleaned
        check = partial(_match_label_files, card=card, data=data)
        series = [item.series for item in with_labels]
        matches = dict(zip([item.id for item in with_labels], mapper(check, series, "comparing labels"), strict=True))
        used = {path for match in matches.values() for path in match.matching}
        faults = {path: fault for match in matches.values() for path, fault in match.faults.items() if path not in used}
        for path, fault in sorted(faults.items()):
            self._plan.reject([self._files[path].source], fault)
        return [_with_matching_labels(item, matches.get(item.id, LabelMatch())) for item in cleaned]

    def _without_duplicates(self, cleaned: list[CleanedSeries]) -> list[CleanedSeries]:
        """Return one series of those with equal voxels: the first with labels, else the first; reject the others."""
        contents = [digest(sorted(self._results[file.path].content for file in item.series.files)) for item in cleaned]
        first_with: dict[str, int] = {}
        for index in sorted(range(len(cleaned)), key=lambda index: (not cleaned[index].series.labels, index)):
            first_with.setdefault(contents[index], index)
        unique = []
        for index, item in enumerate(cleaned):
            if first_with[contents[index]] == index:
                unique.append(item)
            else:
                rejection = Rejection("duplicate", "the same voxels as another series", "remove one of the two")
                self._reject(item.series.files, rejection)
        return unique

    def _reject(self, files: Iterable[SourceFile], rejection: Rejection) -> None:
        self._plan.reject([self._files[file.path].source for file in files], rejection)


_SECOND_LABEL_MAP = Rejection("label", "a second label map of the same image", "name one of them in the card")


@dataclass(frozen=True)
class LabelMatch:
    """Label files of one series.

    Attributes:
        matching: paths of the files that form the label map on the image's grid.
        faults: path -> reason why another file does not.
    """

    matching: tuple[str, ...] = ()
    faults: Mapping[str, Rejection] = field(default_factory=dict)


def _match_label_files(series: SourceSeries, card: DatasetCard, data: Path) -> LabelMatch:
    """Compare the label files of a series with its image. The tissue maps of a series count as one label map."""
    groups: dict[str, list[SourceFile]] = defaultdict(list)
    for file in series.labels:
        groups["tissue" if TISSUE_INFIX in file.path else file.path].append(file)
    matching: tuple[str, ...] = ()
    faults: dict[str, Rejection] = {}
    for files in groups.values():
        fault = _SECOND_LABEL_MAP if matching else _find_label_fault(series, files, card, data)
        if fault is None:
            matching = tuple(file.path for file in files)
            continue
        faults.update({file.path: fault for file in files})
    return LabelMatch(matching, faults)


def _find_label_fault(series: SourceSeries, files: list[SourceFile], card: DatasetCard, data: Path) -> Rejection | None:
    """Return why files are not the label map of a series; None if they are."""
    try:
        read_volume(data, replace(series, labels=tuple(files), annotations=()), card)
    except OmniMRIError as error:
        return Rejection("label", error.what, error.remedy)
    except Exception as error:
        return Rejection("label", f"a label map that cannot be read ({type(error).__name__})", "get the file again")
    return None


def _with_matching_labels(cleaned: CleanedSeries, match: LabelMatch) -> CleanedSeries:
    labels = tuple(file for file in cleaned.series.labels if file.path in match.matching)
    return replace(cleaned, series=_with_md5(replace(cleaned.series, labels=labels)))


def _with_md5(series: SourceSeries) -> SourceSeries:
    """Return a series with the digest over the MD5 of all of its files."""
    return replace(series, md5=digest([[file.path, file.md5] for file in files_of(series)])[:32])
