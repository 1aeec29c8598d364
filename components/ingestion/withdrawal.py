"""Patients who withdrew their consent: out of ``data/`` now, and left out of every later ingestion.

The list (``data/withdrawn.json``: dataset -> pseudonyms) is versioned with the data. It names nobody: a pseudonym leads back to a
person only with the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.files import read_json, write_json
from components.ingestion.manifest import MANIFEST

WITHDRAWN = "withdrawn.json"
_PARTS = ("files", "labels", "annotations")


@dataclass(frozen=True)
class Removed:
    """What a withdrawal took out.

    Attributes:
        series, files: of all datasets.
    """

    series: int
    files: int


def withdrawals(data: Path) -> dict[str, frozenset[str]]:
    """Dataset -> pseudonyms of those who withdrew."""
    path = data / WITHDRAWN
    return {dataset: frozenset(patients) for dataset, patients in read_json(path).items()} if path.exists() else {}


def withdrawn_patients(data: Path, dataset_id: str) -> frozenset[str]:
    """Pseudonyms that must not be taken in from this dataset."""
    return withdrawals(data).get(dataset_id, frozenset())


def patients_of(data: Path) -> dict[str, set[str]]:
    """Dataset -> pseudonyms that are in ``data/`` now."""
    return {
        path.parent.name: {one["patient_id"] for one in read_json(path)["series"]} for path in sorted(data.glob(f"*/{MANIFEST}"))
    }


def withdraw(data: Path, patients: Mapping[str, frozenset[str]]) -> Removed:
    """Record patients as withdrawn and remove what is theirs.

    The list is written first, the manifests next, the files last: killed at any moment, the same call, or the next ingestion,
    completes it.

    Args:
        patients: dataset -> pseudonyms.
    """
    known = withdrawals(data)
    together = {name: known.get(name, frozenset()) | patients.get(name, frozenset()) for name in {*known, *patients}}
    listed = {name: sorted(gone) for name, gone in sorted(together.items()) if gone}
    if listed and together != known:
        write_json(data / WITHDRAWN, listed)
    series = files = 0
    for name, gone in listed.items():
        if (data / name / MANIFEST).exists():
            lost, deleted = _remove(data, name, frozenset(gone))
            series, files = series + lost, files + deleted
    return Removed(series, files)


def _remove(data: Path, dataset_id: str, gone: frozenset[str]) -> tuple[int, int]:
    """Take patients out of one dataset; returns how many series and files went."""
    manifest = read_json(data / dataset_id / MANIFEST)
    kept = [one for one in manifest["series"] if one["patient_id"] not in gone]
    named = {file["path"] for one in kept for part in _PARTS for file in one[part]}
    lost = len(manifest["series"]) - len(kept)
    if lost:
        by_file = {key: value for key, value in manifest.items() if isinstance(value, dict)}
        pruned = {key: {path: one for path, one in value.items() if path in named} for key, value in by_file.items()}
        write_json(data / dataset_id / MANIFEST, {**manifest, **pruned, "series": kept})
    doomed = [path for patient in gone for path in (data / dataset_id / patient).rglob("*") if path.is_file()]
    doomed = [path for path in doomed if path.relative_to(data).as_posix() not in named]
    for path in doomed:
        path.unlink()
    for patient in gone:
        folders = [path for path in (data / dataset_id / patient).rglob("*") if path.is_dir()]
        for folder in [*sorted(folders, reverse=True), data / dataset_id / patient]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return lost, len(doomed)
