"""One folder under DVC: what changed, push and pull, older versions. Commands are DVC's own, from Python.

A version is a list of files with their md5 (DVC's ``.dir`` object), named by its own md5. Objects are moved a batch at a time, each
under a temporary name until it is whole, and the list of a version last: where the list is, everything it names is. So a push or a
pull that was interrupted, at any moment, goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from components.errors import BadInput, JobFailed
from components.files import atomic_file
from components.ingestion.withdrawal import Removed, withdraw, withdrawals
from components.progress import track
from components.provenance import file_md5
from components.versioning.version_diff import DatasetDifference, Version, differences

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "local"
REMOTE_FOLDER = Path(".omnimri") / "dvc-remote"
"""The default remote, a folder beside the runs' state; relative to the repository."""
BATCH = 500
"""Files that are moved together."""
_DIGEST = re.compile(r"[0-9a-f]{6,32}")
_LIST = ".dir"


@dataclass(frozen=True)
class DataVersion:
    """A pinned version of the data.

    Attributes:
        digest: md5 that DVC gives the folder, without its ``.dir``: the name of this version everywhere downstream.
        files, bytes: what it holds.
        changed: it differs from the version that was pinned before.
    """

    digest: str
    files: int
    bytes: int
    changed: bool


@dataclass(frozen=True)
class DatasetStatus:
    """Files of one dataset that are not as the pinned version has them."""

    dataset_id: str
    new: int
    modified: int
    removed: int


@dataclass(frozen=True)
class DataStatus:
    """The folder against its pinned version.

    Attributes:
        digest: the pinned version.
        clean: the folder is what is pinned.
        pushed: the pinned version is whole in the default remote.
        datasets: those that differ.
    """

    digest: str
    clean: bool
    pushed: bool
    datasets: tuple[DatasetStatus, ...]


@dataclass(frozen=True)
class LaidOut:
    """An older version in a folder.

    Attributes:
        digest: the version.
        files: how many were written; those that were there already are not among them.
        withdrawn: what was left out, because its patients have withdrawn since.
    """

    digest: str
    files: int
    withdrawn: Removed


class DataRepository:
    """The DVC repository at ``root`` that holds the folder ``data``."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root.resolve(), data.resolve()
        self.pin = self.root / f"{self.data.name}.dvc"

    def snapshot(self) -> DataVersion:
        """Pin the folder as it is now and push it to the default remote. The pin is not rewritten where nothing changed.

        Raises:
            BadInput: there is no data.
            JobFailed: DVC refuses.
        """
        if not self.data.is_dir() or not any(self.data.iterdir()):
            raise BadInput("no data to version", where=str(self.data), remedy="run omnimri ingest first")
        before = self._pinned()
        with self._opened() as repo:
            if before is None or repo.status([str(self.pin)]):
                repo.add([str(self.data)])
            if repo.config["core"].get("remote"):
                self._push(repo)
        after = self._pinned()
        assert after is not None
        return DataVersion(after["md5"].removesuffix(_LIST), after["nfiles"], after["size"], before != after)

    def digest(self) -> str:
        """The pinned version.

        Raises:
            BadInput: nothing is pinned.
        """
        pinned = self._pinned()
        if pinned is None:
            raise BadInput("no pinned data version", where=str(self.pin), remedy="run omnimri ingest first")
        return str(pinned["md5"]).removesuffix(_LIST)

    def clean(self) -> bool:
        """The folder is what is pinned."""
        with self._opened() as repo:
            return not repo.status([str(self.pin)])

    def status(self) -> DataStatus:
        """What changed since the pinned version.

        Raises:
            BadInput: nothing is pinned.
        """
        digest = self.digest()
        with self._opened() as repo:
            found = repo.data_status(granular=True, with_renames=False)["uncommitted"]
            remote = repo.config["core"].get("remote")
            pushed = bool(remote) and repo.cloud.get_remote_odb().exists(f"{digest}{_LIST}")
        counts: dict[str, dict[str, int]] = {}
        for kind in ("added", "modified", "deleted"):
            for path in found.get(kind, ()):
                dataset = path.removeprefix(f"{self.data.name}/").partition("/")[0]
                if not path.endswith("/"):
                    of_kind = counts.setdefault(dataset, {})
                    of_kind[kind] = of_kind.get(kind, 0) + 1
        datasets = tuple(
            DatasetStatus(name, kinds.get("added", 0), kinds.get("modified", 0), kinds.get("deleted", 0))
            for name, kinds in sorted(counts.items())
        )
        return DataStatus(digest, clean=not datasets, pushed=pushed, datasets=datasets)

    def push(self) -> DataVersion:
        """Pin the folder as it is and send what the default remote lacks; an interrupted push goes on.

        Raises:
            BadInput: no data, or no remote.
            JobFailed: DVC refuses.
        """
        with self._opened() as repo:
            _require_remote(repo)
        return self.snapshot()

    def pull(self) -> LaidOut:
        """Bring the folder to the pinned version, fetching from the default remote what is not here; an interrupted pull goes on.

        Raises:
            BadInput: nothing is pinned, no remote, or the folder has changes that no version holds.
            JobFailed: the remote lacks files.
        """
        return self._enter(self.digest(), force=False)

    def checkout(self, revision: str, force: bool = False) -> LaidOut:
        """Bring the folder to an older version, and pin it. Patients who have withdrawn since are left out.

        Args:
            revision: a digest of the data (6 characters or more), or a git revision whose pin names one.
            force: give up changes that no version holds.

        Raises:
            BadInput: no such version, or such changes without ``force``.
            JobFailed: neither cache nor remote has its files.
        """
        return self._enter(self.resolve(revision), force)

    def lay_out(self, revision: str, folder: Path) -> LaidOut:
        """Write an older version into a folder beside the data, which is not touched; goes on where it was interrupted.

        Raises:
            BadInput: no such version, or the folder holds other files.
            JobFailed: neither cache nor remote has its files.
        """
        digest = self.resolve(revision)
        gone = withdrawals(self.data)
        with self._opened() as repo:
            files = self._files(repo, digest)
            wanted = {path: md5 for path, md5 in files.items() if not _of_withdrawn(path, gone)}
            there = (
                {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
            )
            if strangers := sorted(path for path in there - wanted.keys() if not path.endswith(".tmp")):
                raise BadInput(
                    f"{len(strangers)} files that are not of this version",
                    where=str(folder / strangers[0]),
                    remedy="name an empty folder",
                )
            todo = {path: md5 for path, md5 in wanted.items() if path not in there or file_md5(folder / path) != md5}
            self._fetch(repo, set(todo.values()))
            for path, md5 in track(todo.items(), "writing files", total=len(todo)):
                with atomic_file(folder / path) as temporary:
                    temporary.write_bytes(Path(repo.cache.local.oid_to_path(md5)).read_bytes())
        for left in folder.rglob(".*.tmp"):
            left.unlink()
        return LaidOut(digest, len(todo), withdraw(folder, gone))

    def diff(self, revision: str | None = None) -> list[DatasetDifference]:
        """What differs between a version (by default the pinned one) and the folder as it is.

        Raises:
            BadInput: no such version.
        """
        digest = self.digest() if revision is None else self.resolve(revision)
        with self._opened() as repo:
            files = self._files(repo, digest)

            def read(path: str) -> bytes:
                self._fetch(repo, {files[path]})
                return Path(repo.cache.local.oid_to_path(files[path])).read_bytes()

            # DVC remembers sums by size and time of change: unchanged files are not read again.
            found = repo.data_status(granular=True, with_renames=False)["uncommitted"]
            now = dict(self._files(repo, self.digest()))
            for kind in ("added", "modified", "deleted"):
                for path in (path.removeprefix(f"{self.data.name}/") for path in found.get(kind, ()) if not path.endswith("/")):
                    if kind == "deleted":
                        now.pop(path, None)
                    else:
                        now[path] = file_md5(self.data / path)
            return differences(Version(files, read), Version(now, lambda path: (self.data / path).read_bytes()))

    def withdraw(self, patients: dict[str, frozenset[str]]) -> tuple[Removed, DataVersion]:
        """Take patients out of the folder for good and pin what is left. Earlier versions still hold them: see :meth:`holding`.

        Args:
            patients: dataset -> pseudonyms.
        """
        removed = withdraw(self.data, patients)
        return removed, self.snapshot()

    def holding(self, patients: dict[str, frozenset[str]]) -> dict[str, frozenset[str]]:
        """Versions whose lists are on this machine and that hold files of these patients: digest -> md5 of the files."""
        found: dict[str, frozenset[str]] = {}
        with self._opened() as repo:
            for path in sorted(Path(repo.cache.local.path).glob(f"??/*{_LIST}")):
                files = _listed(path.read_bytes())
                theirs = frozenset(md5 for name, md5 in files.items() if _of_withdrawn(name, patients))
                if theirs:
                    found[path.parent.name + path.name.removesuffix(_LIST)] = theirs
        return found

    def purge(self, patients: dict[str, frozenset[str]]) -> int:
        """Delete the files of patients from cache and default remote, wherever an earlier version holds them.

        Those versions can still be laid out, without these patients. Returns how many files went; files that somebody else's data
        are made of too stay.
        """
        doomed = frozenset().union(*self.holding(patients).values())
        with self._opened() as repo:
            doomed -= set(self._files(repo, self.digest()).values())
            stores = [repo.cache.local]
            if repo.config["core"].get("remote"):
                stores.append(repo.cloud.get_remote_odb())
            for store in stores:
                for md5 in store.list_oids_exists(doomed):
                    store.fs.remove(store.oid_to_path(md5))
        return len(doomed)

    def resolve(self, revision: str) -> str:
        """Digest of the data that a revision names.

        Raises:
            BadInput: neither a version whose list is in cache or remote, nor a git revision with a pin.
        """
        if _DIGEST.fullmatch(revision):
            matching = sorted(self._known(revision))
            if len(matching) == 1:
                return matching[0]
            if matching:
                raise BadInput(f"{len(matching)} versions begin like this", where=revision, remedy="give more characters")
        text = self._git_show(revision)
        if text is None:
            raise BadInput(
                "neither a data version nor a git revision with one",
                where=revision,
                remedy=f"git log -- {self.pin.name} lists the revisions; models show gives the data version of a model",
            )
        return str(yaml.safe_load(text)["outs"][0]["md5"]).removesuffix(_LIST)

    def has(self, digest: str) -> bool:
        """Whether the list of a version is in cache or default remote: a new clone has a pin, and nothing of what it names."""
        return digest in self._known(digest)

    def _known(self, beginning: str) -> set[str]:
        """Digests that begin like this, of versions whose list is in the cache; of a whole digest, the remote is asked too."""
        with self._opened() as repo:
            lists = Path(repo.cache.local.path).glob(f"{beginning[:2]}/*{_LIST}")
            known = {path.parent.name + path.name.removesuffix(_LIST) for path in lists}
            if len(beginning) == 32 and beginning not in known and repo.config["core"].get("remote"):
                known |= {beginning} if repo.cloud.get_remote_odb().exists(f"{beginning}{_LIST}") else set()
        return {digest for digest in known if digest.startswith(beginning)}

    def _git_show(self, revision: str) -> str | None:
        if revision.startswith("-") or not (self.root / ".git").exists():
            return None
        done = subprocess.run(["git", "show", f"{revision}:./{self.pin.name}"], cwd=self.root, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def _enter(self, digest: str, force: bool) -> LaidOut:
        """The folder as a version has it, less those who withdrew."""
        gone = withdrawals(self.data)
        if not force and self._pinned() is not None and self.data.exists() and not self._only_missing():
            raise BadInput(
                "the folder has changes that no version holds",
                where=str(self.data),
                remedy="omnimri data push keeps them as a version; --force gives them up",
            )
        with self._opened() as repo:
            files = self._files(repo, digest)
            objects = set(files.values())
            lost = {md5 for path, md5 in files.items() if _of_withdrawn(path, gone)}
            self._fetch(repo, objects - lost)
            if any(not repo.cache.local.exists(md5) for md5 in lost):
                raise BadInput(
                    "files of withdrawn patients in this version have been purged",
                    where=digest,
                    remedy="omnimri data checkout REV --to FOLDER lays out the rest",
                )
            size = sum(Path(repo.cache.local.oid_to_path(md5)).stat().st_size for md5 in files.values())
            pinned = {"md5": f"{digest}{_LIST}", "size": size, "nfiles": len(files), "hash": "md5", "path": self.data.name}
            with atomic_file(self.pin) as temporary:
                temporary.write_text(yaml.safe_dump({"outs": [pinned]}, sort_keys=False))
            repo.checkout([str(self.pin)], force=True)
        return LaidOut(digest, len(files), withdraw(self.data, gone))

    def _only_missing(self) -> bool:
        """Nothing would be lost: files are as pinned, or not there (as an interrupted pull leaves them)."""
        return all(one.new == one.modified == 0 for one in self.status().datasets)

    def _files(self, repo: Repo, digest: str) -> dict[str, str]:
        """Path -> md5 of a version."""
        self._fetch(repo, {f"{digest}{_LIST}"})
        return _listed(Path(repo.cache.local.oid_to_path(f"{digest}{_LIST}")).read_bytes())

    def _push(self, repo: Repo) -> None:
        digest = self.digest()
        wanted, remote = set(self._files(repo, digest).values()), repo.cloud.get_remote_odb()
        if not remote.exists(f"{digest}{_LIST}"):  # where the list is, all is
            missing = sorted(wanted - set(remote.list_oids_exists(wanted)))
            _move(missing, repo.cloud.push, remote, "sending files")
            _move([f"{digest}{_LIST}"], repo.cloud.push, remote, "sending the list")

    def _fetch(self, repo: Repo, objects: set[str]) -> None:
        """Have objects in the cache."""
        missing = sorted(md5 for md5 in objects if not repo.cache.local.exists(md5))
        if missing:
            _require_remote(repo)
            _move(missing, repo.cloud.pull, repo.cache.local, "fetching files")

    def _pinned(self) -> dict[str, Any] | None:
        if not self.pin.exists():
            return None
        return dict(yaml.safe_load(self.pin.read_text())["outs"][0])

    @contextmanager
    def _opened(self) -> Iterator[Repo]:
        """The repository, initialised where there is none, without analytics; library errors become ours."""
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        from dvc.exceptions import DvcException
        from dvc.repo import Repo
        from dvc_objects.errors import ObjectDBError

        logging.getLogger("dvc").setLevel(logging.WARNING)  # its hints are for people who type DVC's commands
        within_git = (self.root / ".git").exists()
        try:
            if not (self.root / ".dvc").is_dir():
                self._initialise(within_git)
            repo = Repo(str(self.root))
            try:
                yield repo
            finally:
                repo.close()
        except (DvcException, ObjectDBError) as error:
            raise JobFailed(f"DVC: {error}", where=str(self.root), remedy="see `dvc doctor` in this folder") from error

    def _initialise(self, within_git: bool) -> None:
        from dvc.repo import Repo

        repo = Repo.init(str(self.root), no_scm=not within_git)
        try:
            with repo.config.edit() as config:
                config["core"].update({"remote": REMOTE, "analytics": False, "autostage": False})
                config["remote"][REMOTE] = {"url": str(self.root / REMOTE_FOLDER)}
        finally:
            repo.close()


def _listed(content: bytes) -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def _of_withdrawn(path: str, gone: dict[str, frozenset[str]]) -> bool:
    """Whether a file (``dataset/patient/...``) is of a patient who withdrew."""
    dataset, _, rest = path.partition("/")
    return rest.partition("/")[0] in gone.get(dataset, ())


def _require_remote(repo: Repo) -> None:
    if not repo.config["core"].get("remote"):
        raise BadInput("no remote to push to or pull from", where=".dvc/config", remedy="dvc remote add --default NAME URL")


def _move(objects: list[str], transfer: Callable[..., Any], target: Any, what: str) -> None:
    """Push or pull objects, a batch at a time.

    Args:
        target: the object store that has them afterwards.

    Raises:
        JobFailed: some are nowhere, or could not be moved.
    """
    from dvc_data.hashfile.db import get_index
    from dvc_data.hashfile.hash_info import HashInfo

    get_index(target).clear()  # DVC's memory of what is there: a remote that was deleted since would stay empty
    for start in track(range(0, len(objects), BATCH), f"{what}, {BATCH} at a time"):
        transfer([HashInfo("md5", md5) for md5 in objects[start : start + BATCH]])
    if lacking := set(objects) - set(target.list_oids_exists(objects)):
        raise JobFailed(
            f"{len(lacking)} of {len(objects)} objects could not be moved",
            where=min(lacking),
            remedy="run it again; if it stays so, the remote is incomplete: push from a machine that has the version",
        )
