"""Checks of cleaned series: complete, with labels on their grid, without duplicates, and readable as curation reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from components.catalog import DatasetCard
from components.ingestion.cleaning import CleanedFile
from components.ingestion.formats.base import READERS, PlannedFile, PlannedSeries
from components.ingestion.formats.label_maps import read_labels
from components.ingestion.label_matching import (
    OF_ANOTHER_SCAN,
    SEVERAL_SESSIONS,
    FittingLabels,
    choose_labels,
    labels_across_sessions,
    labels_of_other_scans,
)
from components.ingestion.manifest import files_of
from components.ingestion.quarantine import Rejection, rejection_of
from components.ingestion.series_planner import Mapper
from components.ingestion.source_folder import Plan
from components.ingestion.staging import locate
from components.ingestion.volume import SourceFile, SourceSeries, Volume
from components.ingestion.volume_reader import read_volume
from components.machine_faults import raise_machine_fault
from components.provenance import digest
from components.registries import FORMATS


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

    def __init__(
        self, plan: Plan, files: Mapping[str, PlannedFile], results: Mapping[str, CleanedFile], intact: frozenset[str] = frozenset()
    ) -> None:
        """Check the series of a plan.

        Args:
            files: target -> planned file.
            results: target -> cleaned file.
            intact: MD5 of series that were read back by an earlier ingestion.
        """
        self._plan, self._files, self._results, self._intact = plan, files, results, intact
        self._staged = frozenset(target for target, result in results.items() if result.staged)

    def run(self, card: DatasetCard, data: Path, mapper: Mapper) -> list[SourceSeries]:
        """Return the series that pass all checks, in the order of the plan; reject files that could not be written."""
        for target, result in self._results.items():
            if result.rejection is not None:
                self._plan.reject([self._files[target].source], result.rejection)
        cleaned = [series for planned in self._plan.series if (series := self._collect(card.id, planned)) is not None]
        complete = [item for item in cleaned if self._is_complete(item)]
        labeled = self._match_labels(complete, card, data, mapper)
        unique = self._without_duplicates(labeled)
        readable = [item.series for item in self._read_back(unique, card, data, mapper)]
        for file in (file for series in readable for file in series.files):
            for note in self._results[file.path].notes:
                self._plan.notice([self._files[file.path].source], note)
        return readable

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
        names = (dataset_id, planned.patient, planned.series_id, planned.reader)
        series = SourceSeries(*names, images, labels, annotations, visit=planned.visit)
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
        """Return each series with its label map, if there is one; reject label maps that match no image, or not one image alone."""
        with_labels = [item for item in cleaned if item.series.labels]
        if not with_labels:
            return cleaned
        found = self._find_faults(with_labels, card, data, mapper)
        fitting = [self._fitting_labels(item, faults) for item, faults in zip(with_labels, found, strict=True)]
        choices = [choose_labels(labels, lambda target: self._results[target].content) for labels in fitting]
        pairs = list(zip(fitting, choices, strict=True))
        across = set() if card.layout.case else labels_across_sessions(pairs)
        of_others = [set[str]()] * len(pairs) if card.layout.case else labels_of_other_scans(pairs, card.layout.sequences)
        for target in sorted(set().union(*of_others)):
            self._plan.notice([self._files[target].source], OF_ANOTHER_SCAN)
        chosen = {
            item.id: set(choice.chosen) - across - others
            for item, choice, others in zip(with_labels, choices, of_others, strict=True)
        }
        used = set().union(*chosen.values())
        off_grid = {target: fault for faults in found for target, fault in faults.items() if fault is not None}
        unclear = {target: fault for choice in choices for target, fault in choice.faults.items()}
        rejected = {**off_grid, **unclear, **dict.fromkeys(across, SEVERAL_SESSIONS)}
        for target, fault in sorted(rejected.items()):
            if target not in used:
                self._plan.reject([self._files[target].source], fault)
        return [_with_labels(item, chosen.get(item.id, set())) for item in cleaned]

    def _find_faults(
        self, with_labels: list[CleanedSeries], card: DatasetCard, data: Path, mapper: Mapper
    ) -> list[dict[str, Rejection | None]]:
        """Return for each series: label file -> why it does not fit the image; None for one that does.

        A series that an earlier ingestion accepted with all of these labels is not read again.
        """
        check = partial(_find_label_faults, card=card, data=data, staged=self._staged)
        new = [item for item in with_labels if item.series.md5 not in self._intact]
        found = dict(zip((item.id for item in new), mapper(check, [item.series for item in new], "comparing labels"), strict=True))
        return [found.get(item.id, dict.fromkeys(file.path for file in item.series.labels)) for item in with_labels]

    def _fitting_labels(self, cleaned: CleanedSeries, faults: Mapping[str, Rejection | None]) -> FittingLabels:
        """Return the source paths of an image and of the label files on its grid."""

        def name(target: str) -> str:
            return self._plan.names.get(target, self._files[target].source.name)

        fitting = {target: name(target) for target, fault in faults.items() if fault is None}
        return FittingLabels(name(cleaned.series.files[0].path), fitting)

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

    def _read_back(self, cleaned: list[CleanedSeries], card: DatasetCard, data: Path, mapper: Mapper) -> list[CleanedSeries]:
        """Return the series that curation will be able to read, with labels and annotations; reject the others.

        Images whose files were read back one by one in a way that proves them are checked together as a volume
        (:meth:`Format.check_series`); all others, and those with labels or annotations, are read as curation reads them.
        """
        new = [item for item in cleaned if item.series.md5 not in self._intact]
        series = {item.id: (locate(item.series, self._staged), self._read_backs(item.series)) for item in new}
        read = partial(_find_fault, card=card, data=data)
        whole = {name: one for name, (one, read_back) in series.items() if not read_back}
        faults = dict(zip(whole, mapper(read, list(whole.values()), "reading back"), strict=True))
        for name, (one, read_back) in series.items():
            if read_back:
                faults[name] = _find_volume_fault(one, read_back, data)
        for item in new:
            fault = faults[item.id]
            if fault is not None:
                self._reject(item.series.files, fault)
        return [item for item in cleaned if faults.get(item.id) is None]

    def _read_backs(self, series: SourceSeries) -> list[Any]:
        """Return what was read back from each file of a series of images alone; empty if the series has to be read whole."""
        read_backs = [self._results[file.path].read_back for file in files_of(series)]
        return [] if series.labels or series.annotations or None in read_backs else read_backs

    def _reject(self, files: Iterable[SourceFile], rejection: Rejection) -> None:
        self._plan.reject([self._files[file.path].source for file in files], rejection)


def _find_label_faults(series: SourceSeries, card: DatasetCard, data: Path, staged: frozenset[str]) -> dict[str, Rejection | None]:
    """Return label file -> why it does not fit the image of a series; None for one that does."""
    faults: dict[str, Rejection | None] = {}
    located = locate(series, staged)
    volume: Volume | None = None
    for file, stored in zip(series.labels, located.labels, strict=True):
        try:
            volume = volume or read_volume(data, replace(located, labels=(), annotations=()), card)
            read_labels([data / stored.path], volume, card)
            faults[file.path] = None
        except Exception as error:
            raise_machine_fault(error, f"{series.patient_id}/{series.series_id}")
            faults[file.path] = rejection_of(error)._replace(kind="label")
    return faults


def _find_fault(series: SourceSeries, card: DatasetCard, data: Path) -> Rejection | None:
    """Return why a series cannot be read as curation reads it; None if it can."""
    try:
        read_volume(data, series, card)
    except Exception as error:
        raise_machine_fault(error, f"{series.patient_id}/{series.series_id}")
        return rejection_of(error)
    return None


def _find_volume_fault(series: SourceSeries, read_back: Sequence[Any], data: Path) -> Rejection | None:
    """Return why images that were read back one by one cannot be read as a volume; None if they can."""
    try:
        image_format = FORMATS[READERS.get(series.reader, series.reader)]
        image_format.check_series([data / file.path for file in series.files], read_back)
    except Exception as error:
        raise_machine_fault(error, f"{series.patient_id}/{series.series_id}")
        return rejection_of(error)
    return None


def _with_labels(cleaned: CleanedSeries, chosen: set[str]) -> CleanedSeries:
    labels = tuple(file for file in cleaned.series.labels if file.path in chosen)
    return replace(cleaned, series=_with_md5(replace(cleaned.series, labels=labels)))


def _with_md5(series: SourceSeries) -> SourceSeries:
    """Return a series with the digest over the MD5 of all of its files."""
    return replace(series, md5=digest([[file.path, file.md5] for file in files_of(series)])[:32])
