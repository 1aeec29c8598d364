"""Changes of the data folder since the pinned version, from DVC's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.provenance import file_md5
from components.versioning.data_version import DatasetStatus

if TYPE_CHECKING:
    from dvc.repo import Repo


@dataclass(frozen=True)
class FolderChanges:
    """Paths, relative to the data folder, of files that differ from the pinned version."""

    added: tuple[str, ...]
    modified: tuple[str, ...]
    deleted: tuple[str, ...]

    def by_dataset(self) -> tuple[DatasetStatus, ...]:
        """Return the number of changes of each dataset, sorted by dataset."""
        counts = [Counter(path.partition("/")[0] for path in paths) for paths in (self.added, self.modified, self.deleted)]
        added, modified, deleted = counts
        return tuple(
            DatasetStatus(name, added[name], modified[name], deleted[name]) for name in sorted({*added, *modified, *deleted})
        )

    def apply_to(self, pinned: Mapping[str, str], data: Path) -> dict[str, str]:
        """Return path -> md5 of the folder as it is now.

        Args:
            pinned: path -> md5 of the pinned version.
            data: the folder; only added and modified files are read.
        """
        deleted = set(self.deleted)
        current = {path: md5 for path, md5 in pinned.items() if path not in deleted}
        for path in (*self.added, *self.modified):
            current[path] = file_md5(data / path)
        return current


def find_changes(repo: Repo, folder_name: str) -> FolderChanges:
    """Compare the data folder with the pinned version.

    DVC caches the md5 of a file by its size and modification time, so unchanged files are not read again.
    """
    uncommitted = repo.data_status(granular=True, with_renames=False)["uncommitted"]

    def paths(kind: str) -> tuple[str, ...]:
        return tuple(path.removeprefix(f"{folder_name}/") for path in uncommitted.get(kind, ()) if not path.endswith("/"))

    return FolderChanges(paths("added"), paths("modified"), paths("deleted"))
