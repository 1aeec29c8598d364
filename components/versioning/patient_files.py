"""Files of patients in data versions: select them, and find the versions that contain them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from components.versioning.dvc_store import cached_file_lists, parse_file_list

if TYPE_CHECKING:
    from dvc.repo import Repo

Patients = Mapping[str, frozenset[str]]
"""Dataset -> pseudonyms."""


def belongs_to(path: str, patients: Patients) -> bool:
    """Return whether a file (``dataset/patient/...``) belongs to one of the patients."""
    dataset, _, rest = path.partition("/")
    return rest.partition("/")[0] in patients.get(dataset, ())


def find_versions_with(repo: Repo, patients: Patients) -> dict[str, frozenset[str]]:
    """Return digest -> md5 of the patients' files, for versions with such files whose file list is in the cache."""
    versions = {}
    for digest, path in cached_file_lists(repo).items():
        files = parse_file_list(path.read_bytes())
        objects = frozenset(md5 for name, md5 in files.items() if belongs_to(name, patients))
        if objects:
            versions[digest] = objects
    return versions
