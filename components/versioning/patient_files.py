"""Files of patients in data versions: select them, find the versions that contain them, and delete them from all stores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from components.versioning.dvc_store import cached_file_lists, has_remote, parse_file_list

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


def delete_objects(repo: Repo, objects: Iterable[str]) -> None:
    """Delete objects from the cache and the default remote; ignore missing ones."""
    objects = set(objects)
    stores = [repo.cache.local]
    if has_remote(repo):
        stores.append(repo.cloud.get_remote_odb())
    for store in stores:
        for md5 in store.list_oids_exists(objects):
            store.fs.remove(store.oid_to_path(md5))
