"""Patients who withdrew their consent: removed from ``data/``, and excluded from every later ingestion.

The list (``data/withdrawn.json``: dataset -> pseudonyms) is versioned with the data. It identifies nobody: without the key, no
pseudonym leads back to a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from components.errors import MachineFault
from components.file_switch import INCOMING, FileSwitch
from components.files import read_json, write_json
from components.ingestion.manifest import MANIFEST, Manifest, files_of

WITHDRAWN = "withdrawn.json"


@dataclass(frozen=True)
class Removed:
    """Number of series and files, of all datasets, that a withdrawal removed."""

    series: int
    files: int


def withdrawals(data: Path) -> dict[str, frozenset[str]]:
    """Return dataset -> pseudonyms of the patients who withdrew.

    Raises:
        MachineFault: the list is damaged; taken for empty, it would let them in again.
    """
    path = data / WITHDRAWN
    try:
        return {dataset: frozenset(patients) for dataset, patients in read_json(path).items()} if path.exists() else {}
    except (ValueError, AttributeError, TypeError):
        raise MachineFault(
            "the list of withdrawn patients is damaged",
            where=str(path),
            remedy="restore it from a data version (omnimri data checkout REV --to FOLDER) or a backup",
        ) from None


def withdrawn_patients(data: Path, dataset_id: str) -> frozenset[str]:
    """Return the pseudonyms that must not be ingested from a dataset."""
    return withdrawals(data).get(dataset_id, frozenset())


def patients_of(data: Path) -> dict[str, set[str]]:
    """Return dataset -> pseudonyms of the patients in ``data/``; where a manifest is damaged, of those who have a folder."""
    return {path.parent.name: _patients_in(path) for path in sorted(data.glob(f"*/{MANIFEST}"))}


def _patients_in(manifest: Path) -> set[str]:
    try:
        return {series["patient_id"] for series in read_json(manifest)["series"]}
    except (ValueError, KeyError, TypeError):
        return {path.name for path in manifest.parent.iterdir() if path.is_dir()}


def withdraw(data: Path, patients: Mapping[str, frozenset[str]]) -> Removed:
    """Record patients as withdrawn and remove their files.

    The list is written first, the manifests next, the files last: after an interruption, the same call, or the next ingestion,
    completes the removal.

    Args:
        patients: dataset -> pseudonyms.

    Raises:
        MachineFault: the list or a manifest is damaged; the files of the patients have been removed all the same.
    """
    faults: list[MachineFault] = []
    try:
        recorded = withdrawals(data)
    except MachineFault as error:
        faults, recorded = [error], {}
    merged = {name: recorded.get(name, frozenset()) | patients.get(name, frozenset()) for name in {*recorded, *patients}}
    listed = {name: sorted(pseudonyms) for name, pseudonyms in sorted(merged.items()) if pseudonyms}
    if listed and merged != recorded and not faults:
        write_json(data / WITHDRAWN, listed)
    series = files = 0
    for name, pseudonyms in listed.items():
        try:
            removed = _remove_patients(data, name, frozenset(pseudonyms))
            series, files = series + removed.series, files + removed.files
        except MachineFault as error:
            faults.append(error)
    if faults:
        raise faults[0]
    return Removed(series, files)


def _remove_patients(data: Path, dataset_id: str, patients: frozenset[str]) -> Removed:
    """Remove patients from the manifest of a dataset, then their files, also those of an interrupted ingestion."""
    root = data / dataset_id
    FileSwitch(root, MANIFEST).recover()
    folders = [folder / patient for patient in patients for folder in (root, root / INCOMING)]
    try:
        manifest = Manifest.read(root)
    except MachineFault:
        _remove_files(data, folders, set())
        raise
    if manifest is None:
        return Removed(0, _remove_files(data, folders, set()))
    remaining = tuple(series for series in manifest.series if series.patient_id not in patients)
    paths = {file.path for series in remaining for file in files_of(series)}
    removed = len(manifest.series) - len(remaining)
    if removed:
        sources = {path: md5 for path, md5 in manifest.sources.items() if path in paths}
        contents = {path: md5 for path, md5 in manifest.contents.items() if path in paths}
        replace(manifest, series=remaining, sources=sources, contents=contents).write(root)
    return Removed(removed, _remove_files(data, folders, paths))


def _remove_files(data: Path, folders: Iterable[Path], listed: set[str]) -> int:
    """Delete the files of patients' folders that no series lists, and folders that become empty; return how many files."""
    count = 0
    for folder in folders:
        for path in [path for path in folder.rglob("*") if path.is_file() and path.relative_to(data).as_posix() not in listed]:
            path.unlink()
            count += 1
        subfolders = [path for path in folder.rglob("*") if path.is_dir()]
        for path in [*sorted(subfolders, reverse=True), folder]:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
    return count
