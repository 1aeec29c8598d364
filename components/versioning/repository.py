"""The DVC repository of the data folder: pin, push, pull, check out, export, compare, and withdraw patients.

It uses the Python interface of DVC. :mod:`components.versioning.dvc_store` transfers the objects of a version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import BadInput, JobFailed, MachineFault, OmniMRIError
from components.ingestion.manifest import MANIFEST
from components.ingestion.withdrawal import Removed, withdraw, withdrawals
from components.provenance import file_md5
from components.versioning.data_version import CheckoutResult, DataStatus, DataVersion, Withdrawal
from components.versioning.dvc_store import (
    add_folder,
    cached_file_lists,
    fetch_objects,
    has_remote,
    object_path,
    open_dvc,
    parse_file_list,
    push_version,
    read_file_list,
    remote_has_version,
    require_remote,
    write_ignored,
)
from components.versioning.export import export_files
from components.versioning.folder_changes import find_changes
from components.versioning.patient_files import belongs_to, find_versions_with
from components.versioning.pin import Pin, digest_at_revision, digests_in_history
from components.versioning.purge import list_versions, manifest_objects, patients_in, read_stores
from components.versioning.purge import purge as delete_patients
from components.versioning.version_diff import DatasetDiff, VersionContent, diff_versions

if TYPE_CHECKING:
    from dvc.repo import Repo

_DIGEST = re.compile(r"[0-9a-f]{6,32}")
_DIGEST_LENGTH = 32


class DataRepository:
    """The DVC repository at ``root`` that versions the folder ``data``.

    Attributes:
        root: folder of the repository.
        data: the versioned folder, below ``root``.
        pin: the ``.dvc`` file that names the pinned version.
    """

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root.resolve(), data.resolve()
        self.pin = self.root / f"{self.data.name}.dvc"

    def snapshot(self) -> DataVersion:
        """Pin the current content of the folder and push it to the default remote. An unchanged pin is not rewritten.

        Raises:
            BadInput: there is no data.
            MachineFault: the machine failed; the last version is still pinned.
            JobFailed: DVC raised an error.
        """
        if not self.data.is_dir() or not any(self.data.iterdir()):
            raise BadInput("no data to version", where=str(self.data), remedy="run omnimri ingest first")
        previous = Pin.read(self.pin)
        write_ignored(self.root, self.data.name)
        with open_dvc(self.root, self.data.name) as repo:
            if previous is None or repo.status([str(self.pin)]):
                add_folder(repo, self.data)
            if has_remote(repo):
                push_version(repo, self.digest())
        current = self._read_pin()
        return DataVersion(current.digest, current.files, current.bytes, previous != current)

    def digest(self) -> str:
        """Return the digest of the pinned version.

        Raises:
            BadInput: no version is pinned.
        """
        return self._read_pin().digest

    def is_clean(self) -> bool:
        """Return whether the folder equals the pinned version."""
        with open_dvc(self.root, self.data.name) as repo:
            return not repo.status([str(self.pin)])

    def status(self) -> DataStatus:
        """Return the differences between the folder and the pinned version.

        Raises:
            BadInput: no version is pinned.
        """
        digest = self.digest()
        with open_dvc(self.root, self.data.name) as repo:
            datasets = find_changes(repo, self.data.name).by_dataset()
            pushed = remote_has_version(repo, digest)
        return DataStatus(digest, clean=not datasets, pushed=pushed, datasets=datasets)

    def push(self) -> DataVersion:
        """Pin the current content of the folder and send what the default remote lacks; resume an interrupted push.

        Raises:
            BadInput: there is no data, or no remote.
            JobFailed: DVC raised an error.
        """
        with open_dvc(self.root, self.data.name) as repo:
            require_remote(repo)
        return self.snapshot()

    def pull(self) -> CheckoutResult:
        """Set the folder to the pinned version and fetch missing files from the default remote; resume an interrupted pull.

        Raises:
            BadInput: no version is pinned, there is no remote, or the folder has changes that are in no version.
            JobFailed: the remote lacks files.
        """
        return self._check_out(self.digest(), force=False)

    def checkout(self, revision: str, force: bool = False) -> CheckoutResult:
        """Set the folder to an older version, and pin it. Patients who have withdrawn since are excluded.

        Args:
            revision: a digest of the data (6 characters or more), or a git revision whose pin names one.
            force: discard changes that are in no version.

        Raises:
            BadInput: there is no such version, or there are such changes and ``force`` is false.
            JobFailed: neither cache nor remote has its files.
        """
        return self._check_out(self.resolve(revision), force)

    def export_version(self, revision: str, folder: Path) -> CheckoutResult:
        """Write an older version into another folder; the data folder does not change. Resume an interrupted export.

        Patients who have withdrawn since are excluded.

        Raises:
            BadInput: there is no such version, or the folder contains other files.
            JobFailed: neither cache nor remote has its files.
        """
        digest, withdrawn = self.resolve(revision), withdrawals(self.data)
        with open_dvc(self.root, self.data.name) as repo:
            files = read_file_list(repo, digest)
            included = {path: md5 for path, md5 in files.items() if not belongs_to(path, withdrawn)}
            written = export_files(repo, included, folder)
        return CheckoutResult(digest, written, withdraw(folder, withdrawn))

    def diff(self, revision: str | None = None) -> list[DatasetDiff]:
        """Return the differences between a version (default: the pinned one) and the current content of the folder.

        Raises:
            BadInput: there is no such version.
        """
        pinned = self.digest()
        digest = pinned if revision is None else self.resolve(revision)
        with open_dvc(self.root, self.data.name) as repo:
            files = read_file_list(repo, digest)
            current = find_changes(repo, self.data.name).apply_to(read_file_list(repo, pinned), self.data)

            def read_object(path: str) -> bytes:
                fetch_objects(repo, {files[path]})
                return object_path(repo, files[path]).read_bytes()

            older = VersionContent(files, read_object)
            return diff_versions(older, VersionContent(current, lambda path: (self.data / path).read_bytes()))

    def withdraw(self, patients: dict[str, frozenset[str]], purge: bool = False) -> Withdrawal:
        """Remove patients from the folder permanently, delete their files of earlier versions, and pin the result.

        Nothing that fails later, such as a remote that does not answer, keeps the files from being deleted.

        Args:
            patients: dataset -> pseudonyms.
            purge: delete the files of all versions from the cache and every remote, too. Content that other patients' files
                share remains. The earlier versions can still be exported, without these patients.

        Raises:
            BadInput: without ``purge``, if the folder lacks datasets of the pinned version.
            MachineFault: without ``purge``, if the list of the withdrawn or a manifest is damaged.
        """
        present = self._objects_in_folder(patients)
        removed, unrecorded = self._remove_from_folder(patients, purge)
        unproven, deleted, versions = list(unrecorded), 0, frozenset[str]()
        if purge:
            pins, faults = self._known_pins()
            with open_dvc(self.root, self.data.name) as repo:
                result = delete_patients(repo, patients, pins, present)
            deleted, versions, unproven = result.deleted, result.versions, [*unproven, *faults, *result.unproven]
        try:
            digest = self.digest() if unrecorded else self.snapshot().digest
        except (OmniMRIError, OSError) as error:
            digest = ""
            unproven.append(f"the new version could not be pinned and sent: {error}")
        return Withdrawal(removed, digest, versions or frozenset(self._versions_in_cache(patients)), deleted, tuple(unproven))

    def _remove_from_folder(self, patients: Mapping[str, frozenset[str]], purge: bool) -> tuple[Removed, list[str]]:
        """Remove patients from the folder; return also why the folder does not record it, which then must not be pinned.

        Raises:
            BadInput, MachineFault: that reason, without ``purge``.
        """
        try:
            if missing := self._missing_datasets():
                fault = f"the withdrawal is not recorded yet: datasets of the pinned version are missing: {', '.join(missing)}"
                remedy = "omnimri data pull fetches them; then withdraw again"
                raise BadInput(fault, where=str(self.data), remedy=remedy)
            return withdraw(self.data, patients), []
        except (BadInput, MachineFault) as error:
            if not purge:
                raise
            return Removed(0, 0), [str(error)]

    def _missing_datasets(self) -> list[str]:
        """Return the datasets of the pinned version that the folder lacks, as in a clone before its first pull."""
        try:
            with open_dvc(self.root, self.data.name) as repo:
                pinned = read_file_list(repo, self.digest()) if self.pin.exists() else {}
        except OmniMRIError:  # the version is lost: what the folder contains is all there is
            return [] if self.data.is_dir() else [self.data.name]
        manifests = [path for path in pinned if path.endswith(f"/{MANIFEST}")]
        return sorted(path.partition("/")[0] for path in manifests if not (self.data / path).exists())

    def _objects_in_folder(self, patients: Mapping[str, frozenset[str]]) -> set[str]:
        objects: set[str] = set()
        for dataset, names in patients.items():
            objects |= manifest_objects(self.data / dataset / MANIFEST, names)
        return objects

    def _known_pins(self) -> tuple[set[str], list[str]]:
        """Return the versions that any git revision or the working tree pins, and why they may be incomplete."""
        try:
            current = {self.digest()} if self.pin.exists() else set()
        except BadInput:
            current = set()
        try:
            return current | digests_in_history(self.pin), []
        except JobFailed as error:
            return current, [str(error)]

    def _versions_in_cache(self, patients: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        try:
            return self.find_versions_with(patients)
        except OmniMRIError:
            return {}

    def find_versions_with(self, patients: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Return digest -> md5 of the patients' files, for versions with such files whose file list is on this machine."""
        with open_dvc(self.root, self.data.name) as repo:
            return find_versions_with(repo, patients)

    def patients_of_versions(self) -> tuple[dict[str, set[str]], list[str]]:
        """Return dataset -> pseudonyms of the patients of every version whose file list is in the cache or a remote.

        The second value names the stores that could not be read.
        """
        with open_dvc(self.root, self.data.name) as repo:
            stores = read_stores(repo)
        return patients_in(list_versions(stores)), [fault for content in stores for fault in content.faults]

    def resolve(self, revision: str) -> str:
        """Return the digest that a revision names.

        Args:
            revision: a digest of the data (6 characters or more), or a git revision whose pin names one.

        Raises:
            BadInput: it is neither a version whose file list is in cache or remote, nor a git revision with a pin.
        """
        if _DIGEST.fullmatch(revision):
            matching = sorted(self._find_digests(revision))
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise BadInput(f"{len(matching)} versions start with this prefix", where=revision, remedy="give more characters")
        digest = digest_at_revision(self.pin, revision)
        if digest is None:
            raise BadInput(
                "neither a data version nor a git revision that pins one",
                where=revision,
                remedy=f"git log -- {self.pin.name} lists the revisions; models show prints the data version of a model",
            )
        return digest

    def has_version(self, digest: str) -> bool:
        """Return whether the file list of a version is in cache or default remote; a new clone may have only the pin."""
        return digest in self._find_digests(digest)

    def _find_digests(self, prefix: str) -> set[str]:
        """Return the digests with a prefix of versions in the cache; look up a complete digest in the remote, too."""
        with open_dvc(self.root, self.data.name) as repo:
            digests = set(cached_file_lists(repo, prefix))
            if len(prefix) == _DIGEST_LENGTH and not digests and remote_has_version(repo, prefix):
                return {prefix}
        return digests

    def _check_out(self, digest: str, force: bool) -> CheckoutResult:
        """Set the folder to a version without withdrawn patients, and pin it."""
        withdrawn = withdrawals(self.data)
        if not force and self.pin.exists() and self.data.exists() and self._has_unversioned_files():
            raise BadInput(
                "the folder has changes that are in no version",
                where=str(self.data),
                remedy="omnimri data push saves them as a version; --force discards them",
            )
        write_ignored(self.root, self.data.name)
        with open_dvc(self.root, self.data.name) as repo:
            files = read_file_list(repo, digest)
            withdrawn_objects = {md5 for path, md5 in files.items() if belongs_to(path, withdrawn)}
            fetch_objects(repo, set(files.values()) - withdrawn_objects)
            if any(not repo.cache.local.exists(md5) for md5 in withdrawn_objects):
                raise BadInput(
                    "files of withdrawn patients in this version have been purged",
                    where=digest,
                    remedy="omnimri data checkout REV --to FOLDER writes the other patients",
                )
            size = sum(object_path(repo, md5).stat().st_size for md5 in files.values())
            Pin(digest, len(files), size).write(self.pin)
            repo.checkout([str(self.pin)], force=True)
            removed = withdraw(self.data, withdrawn)
            cached = _count_cached(repo, withdrawals(self.data))
        return CheckoutResult(digest, len(files), removed, cached)

    def _has_unversioned_files(self) -> bool:
        """Return whether a checkout would discard content that the cache lacks; missing files, as after a pull, do not count."""
        with open_dvc(self.root, self.data.name) as repo:
            changes = find_changes(repo, self.data.name)
            changed = (*changes.added, *changes.modified)
            return any(not repo.cache.local.exists(file_md5(self.data / path)) for path in changed)

    def _read_pin(self) -> Pin:
        pin = Pin.read(self.pin)
        if pin is None:
            raise BadInput("no pinned data version", where=str(self.pin), remedy="run omnimri ingest first")
        return pin


def _count_cached(repo: Repo, patients: Mapping[str, frozenset[str]]) -> int:
    """Return the number of files in the cache that only these patients have."""
    if not patients:
        return 0
    owned: set[str] = set()
    others: set[str] = set()
    for path in cached_file_lists(repo).values():
        for name, md5 in parse_file_list(path.read_bytes()).items():
            (owned if belongs_to(name, patients) else others).add(md5)
    return sum(repo.cache.local.exists(md5) for md5 in owned - others)
