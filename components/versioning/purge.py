"""Deletion of patients' files of all versions from the cache and from every remote.

Which objects belong to a patient follows from the file lists of all versions in all stores, not only in the cache of this machine.
What cannot be proved deleted is named: a store that does not answer, a version whose file list is lost, stored objects that no
known version lists, and images that another pseudonym has, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.provenance import file_md5
from components.versioning.dvc_store import LIST_SUFFIX, parse_file_list
from components.versioning.patient_files import Patients, belongs_to

if TYPE_CHECKING:
    from dvc.repo import Repo

_OBJECT = re.compile(rf"[0-9a-f]{{32}}({re.escape(LIST_SUFFIX)})?")
ANNOTATION_SUFFIXES = (".json", ".csv", ".tsv", ".txt")
"""Files whose content can be the same for unrelated patients, such as an empty sidecar."""
LEFTOVER_AGE_S = 3600.0
"""Age from which a temporary file in a store counts as the remains of an interrupted transfer."""


@dataclass(frozen=True)
class Purge:
    """Result of a deletion.

    Attributes:
        deleted: number of objects deleted from at least one store.
        versions: versions that contained files of the patients.
        unproven: one sentence for everything that could not be proved deleted, with its remedy.
    """

    deleted: int
    versions: frozenset[str]
    unproven: tuple[str, ...]


@dataclass
class StoreContent:
    """Objects of the cache or of a remote.

    Attributes:
        name: ``cache``, or ``remote NAME``.
        store: DVC's object store.
        files: md5 of the objects that are files of versions.
        lists: digest -> path -> md5, of the intact file lists.
        faults: what could not be read, one sentence each.
    """

    name: str
    store: Any
    files: set[str] = field(default_factory=set)
    lists: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def read(self) -> None:
        """List the objects, read the file lists, and delete the remains of interrupted transfers."""
        for path in list(self.store.fs.find(self.store.path)):
            oid = "".join(path.split("/")[-2:])
            if path.endswith(".tmp"):
                self._delete_leftover(Path(path))
            elif not _OBJECT.fullmatch(oid):
                continue
            elif oid.endswith(LIST_SUFFIX):
                self._read_list(oid)
            else:
                self.files.add(oid)

    def _read_list(self, oid: str) -> None:
        content = self.store.fs.cat_file(self.store.oid_to_path(oid))
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == oid.removesuffix(LIST_SUFFIX):
            self.lists[oid.removesuffix(LIST_SUFFIX)] = parse_file_list(content)

    def _delete_leftover(self, path: Path) -> None:
        if self.store.fs.protocol != "local" or not path.is_file():
            return
        if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
            path.unlink()
        else:
            self.faults.append(f"{self.name}: a transfer is going on or was just interrupted: purge again in an hour")

    def delete(self, objects: Collection[str]) -> set[str]:
        """Delete objects; return those that were there and are not any more."""
        present = self.files & set(objects)
        for md5 in sorted(present):
            self.store.fs.remove(self.store.oid_to_path(md5))
        left = {md5 for md5 in present if self.store.exists(md5)}
        if left:
            self.faults.append(f"{self.name}: {len(left)} objects could not be deleted: check its permissions")
        _forget_index(self.store)
        return present - left


def _forget_index(store: Any) -> None:
    """Clear DVC's record of what a store contains, which would say that it has the deleted objects."""
    from dvc_data.hashfile.db import get_index

    get_index(store).clear()


def read_stores(repo: Repo) -> list[StoreContent]:
    """Return the content of the cache and of every configured remote; a store that does not answer has a fault instead."""
    stores = [StoreContent("cache", repo.cache.local)]
    stores += [StoreContent(f"remote {name}", None) for name in sorted(repo.config["remote"])]
    for content in stores:
        try:
            if content.store is None:
                content.store = _open_remote(repo, content.name.removeprefix("remote "))
            content.read()
        except Exception as error:  # cloud clients raise errors of their own; the other stores must be purged all the same
            remedy = "make it reachable and purge again, or dvc remote remove it"
            content.faults.append(f"{content.name}: not readable ({type(error).__name__}): {remedy}")
    return stores


def _open_remote(repo: Repo, name: str) -> Any:
    remote = repo.cloud.get_remote(name)
    if remote.fs.protocol == "local" and not Path(remote.path).is_dir():
        raise FileNotFoundError(remote.path)
    return repo.cloud.get_remote_odb(name)


def list_versions(stores: Iterable[StoreContent]) -> dict[str, dict[str, str]]:
    """Return digest -> path -> md5 of every version whose file list is in one of the stores."""
    return {digest: files for content in stores for digest, files in content.lists.items()}


def purge(repo: Repo, patients: Patients, pinned: Collection[str], present: Collection[str]) -> Purge:
    """Delete the objects that only these patients' files have, in every store.

    Args:
        patients: dataset -> pseudonyms.
        pinned: digests of the versions that git or the working tree pins.
        present: md5 of the patients' files in ``data/``, which may be in no version yet.
    """
    stores = read_stores(repo)
    versions = list_versions(stores)
    owned, others = _split(versions, patients)
    objects = {*owned, *present} - others.keys()
    deleted = _delete(stores, objects)
    unproven = [fault for content in stores for fault in content.faults]
    unproven += _unlisted(stores, versions, pinned, objects) + _shared({*owned, *present}, others)
    affected = {digest for digest, files in versions.items() if any(belongs_to(path, patients) for path in files)}
    return Purge(len(deleted), frozenset(affected), tuple(unproven))


def _split(versions: Mapping[str, Mapping[str, str]], patients: Patients) -> tuple[set[str], dict[str, list[str]]]:
    """Return the md5 of the patients' files, and md5 -> paths of all other files."""
    owned: set[str] = set()
    others: dict[str, list[str]] = {}
    for files in versions.values():
        for path, md5 in files.items():
            if belongs_to(path, patients):
                owned.add(md5)
            else:
                others.setdefault(md5, []).append(path)
    return owned, others


def _delete(stores: Iterable[StoreContent], objects: Collection[str]) -> set[str]:
    deleted: set[str] = set()
    for content in stores:
        if content.store is None:
            continue
        try:
            deleted |= content.delete(objects)
        except Exception as error:  # as in read_stores
            content.faults.append(f"{content.name}: objects could not be deleted ({type(error).__name__}): purge again")
    return deleted


def _unlisted(
    stores: Iterable[StoreContent], versions: Mapping[str, Mapping[str, str]], pinned: Collection[str], deleted: Collection[str]
) -> list[str]:
    """Name lost file lists and the objects that may belong to them; without such objects, nothing of a lost version is stored."""
    listed = {md5 for files in versions.values() for md5 in files.values()} | set(deleted)
    lost = sorted(set(pinned) - versions.keys())
    sentences = []
    for content in stores:
        if unlisted := content.files - listed:
            of = f"; the file lists of these versions are lost: {', '.join(lost)}" if lost else ""
            remedy = "push the version from a clone that has it and purge again, or delete them with dvc gc --all-commits --cloud"
            sentences.append(f"{content.name}: no known version lists {len(unlisted)} of its objects{of}: {remedy}")
    return sentences


def _shared(objects: Collection[str], others: Mapping[str, list[str]]) -> list[str]:
    """Name the pseudonyms that have an image with the same content: probably the same person under another key or dataset."""
    names = sorted(
        {
            "/".join(path.split("/")[:2])
            for md5 in objects
            for path in others.get(md5, ())
            if path.count("/") >= 2 and not path.endswith(ANNOTATION_SUFFIXES)
        }
    )
    if not names:
        return []
    return [f"the same images are stored as {', '.join(names)}: if this is the same person, withdraw that pseudonym, too"]


def patients_in(versions: Mapping[str, Mapping[str, str]]) -> dict[str, set[str]]:
    """Return dataset -> pseudonyms of all patients in these versions."""
    patients: dict[str, set[str]] = {}
    for files in versions.values():
        for path in files:
            dataset, _, rest = path.partition("/")
            patient, _, file = rest.partition("/")
            if file:
                patients.setdefault(dataset, set()).add(patient)
    return patients


def manifest_objects(manifest: Path, patients: Collection[str]) -> set[str]:
    """Return the md5 of the patients' files beside a manifest, and of those that it lists, if it can be read."""
    folders = [manifest.parent / patient for patient in patients]
    beside = {file_md5(path) for folder in folders for path in folder.rglob("*") if path.is_file()}
    try:
        series = json.loads(manifest.read_text())["series"] if manifest.exists() else []
        listed = [one for one in series if one["patient_id"] in patients]
        return beside | {file["md5"] for one in listed for role in ("files", "labels", "annotations") for file in one[role]}
    except (ValueError, KeyError, TypeError):  # damaged, which the withdrawal itself reports
        return beside
