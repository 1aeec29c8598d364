"""What differs between two versions of the data, in patients and series."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MANIFEST = "manifest.json"
Files = Mapping[str, str]
"""Path relative to ``data/`` -> md5."""


@dataclass(frozen=True)
class DatasetDifference:
    """One dataset, from an older to a newer version.

    Attributes:
        series_new, series_changed, series_removed: names; changed = the same name, other bytes.
        patients_new, patients_removed: pseudonyms.
        files_new, files_changed, files_removed: how many.
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
class Version:
    """A version as it is compared.

    Attributes:
        files: what it holds.
        read: bytes of one of its files, by path.
    """

    files: Files
    read: Callable[[str], bytes]

    def series(self, dataset_id: str) -> dict[str, tuple[str, str]]:
        """Series -> (patient, md5); empty where the dataset is not in this version."""
        path = f"{dataset_id}/{MANIFEST}"
        if path not in self.files:
            return {}
        return {one["series_id"]: (one["patient_id"], one["md5"]) for one in json.loads(self.read(path))["series"]}


def differences(older: Version, newer: Version) -> list[DatasetDifference]:
    """The datasets that differ, by name."""
    by_dataset: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for side, version in enumerate((older, newer)):
        for path, md5 in version.files.items():
            by_dataset.setdefault(path.partition("/")[0], ({}, {}))[side][path] = md5
    return [
        _dataset(name, before, after, older.series(name), newer.series(name))
        for name, (before, after) in sorted(by_dataset.items())
        if before != after
    ]


def _dataset(
    name: str, before: Files, after: Files, series_before: dict[str, tuple[str, str]], series_after: dict[str, tuple[str, str]]
) -> DatasetDifference:
    patients_before, patients_after = ({patient for patient, _ in series.values()} for series in (series_before, series_after))
    shared = series_before.keys() & series_after.keys()
    return DatasetDifference(
        dataset_id=name,
        series_new=tuple(sorted(series_after.keys() - series_before.keys())),
        series_changed=tuple(sorted(one for one in shared if series_before[one] != series_after[one])),
        series_removed=tuple(sorted(series_before.keys() - series_after.keys())),
        patients_new=tuple(sorted(patients_after - patients_before)),
        patients_removed=tuple(sorted(patients_before - patients_after)),
        files_new=len(after.keys() - before.keys()),
        files_changed=sum(before[path] != after[path] for path in before.keys() & after.keys()),
        files_removed=len(before.keys() - after.keys()),
    )
