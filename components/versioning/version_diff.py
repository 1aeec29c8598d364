"""Compare two versions of the data: patients, series and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from components.ingestion.manifest import MANIFEST

Files = Mapping[str, str]
"""Path relative to ``data/`` -> md5."""


@dataclass(frozen=True)
class DatasetDiff:
    """Differences of one dataset from an older to a newer version.

    Attributes:
        series_new, series_changed, series_removed: names of series; changed = same name, different content.
        patients_new, patients_removed: pseudonyms.
        files_new, files_changed, files_removed: number of files.
    """

    dataset_id: str
    series_new: tuple[str, ...]
    series_changed: tuple[str, ...]
    series_removed: tuple[str, ...]
    patients_new: tuple[str, ...]
    patients_removed: tuple[str, ...]
    files_new: int
    files_changed: int
    files_removed: int


@dataclass(frozen=True)
class VersionContent:
    """Content of a version.

    Attributes:
        files: path -> md5.
        read: function that returns the content of a file, by path.
    """

    files: Files
    read: Callable[[str], bytes]

    def series(self, dataset_id: str) -> dict[str, tuple[str, str]]:
        """Return series -> (patient, md5) from the manifest of a dataset; empty without a manifest."""
        path = f"{dataset_id}/{MANIFEST}"
        if path not in self.files:
            return {}
        return {series["series_id"]: (series["patient_id"], series["md5"]) for series in json.loads(self.read(path))["series"]}


def diff_versions(older: VersionContent, newer: VersionContent) -> list[DatasetDiff]:
    """Return the datasets that differ, sorted by name."""
    older_files, newer_files = _group_by_dataset(older.files), _group_by_dataset(newer.files)
    return [
        _diff_dataset(name, older_files.get(name, {}), newer_files.get(name, {}), older.series(name), newer.series(name))
        for name in sorted({*older_files, *newer_files})
        if older_files.get(name) != newer_files.get(name)
    ]


def _group_by_dataset(files: Files) -> dict[str, dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    for path, md5 in files.items():
        groups.setdefault(path.partition("/")[0], {})[path] = md5
    return groups


def _diff_dataset(
    name: str,
    older_files: Files,
    newer_files: Files,
    older_series: dict[str, tuple[str, str]],
    newer_series: dict[str, tuple[str, str]],
) -> DatasetDiff:
    older_patients = {patient for patient, _ in older_series.values()}
    newer_patients = {patient for patient, _ in newer_series.values()}
    common_series = older_series.keys() & newer_series.keys()
    common_files = older_files.keys() & newer_files.keys()
    return DatasetDiff(
        dataset_id=name,
        series_new=tuple(sorted(newer_series.keys() - older_series.keys())),
        series_changed=tuple(sorted(series for series in common_series if older_series[series] != newer_series[series])),
        series_removed=tuple(sorted(older_series.keys() - newer_series.keys())),
        patients_new=tuple(sorted(newer_patients - older_patients)),
        patients_removed=tuple(sorted(older_patients - newer_patients)),
        files_new=len(newer_files.keys() - older_files.keys()),
        files_changed=sum(older_files[path] != newer_files[path] for path in common_files),
        files_removed=len(older_files.keys() - newer_files.keys()),
    )
