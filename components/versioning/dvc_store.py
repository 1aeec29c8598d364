"""Object store of DVC: open the repository, read the file list of a version, transfer objects to and from the default remote.

The objects of a version are its files, named by md5, and its file list (DVC's ``.dir`` object), named by its own md5. Objects are
transferred in batches, each under a temporary name until it is complete, and the file list last: a store that contains the list
contains all files that it names. An interrupted push or pull can therefore resume at any point.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import BadInput, JobFailed
from components.file_switch import INCOMING, RECORD, REPLACED
from components.files import atomic_file
from components.ingestion.manifest import JOURNAL
from components.machine_faults import find_system_fault, own_file, raise_machine_fault
from components.progress import track

if TYPE_CHECKING:
    from dvc.repo import Repo

REMOTE = "local"
REMOTE_FOLDER = Path(".omnimri") / "dvc-remote"
"""Default remote: a folder relative to the repository."""
BATCH_SIZE = 500
"""Objects per transfer."""
UNFINISHED = (f"{INCOMING}/", f"{REPLACED}/", RECORD, JOURNAL)
"""Patterns of ``.dvcignore`` for files that belong to no version."""
FOREIGN = "/*"
"""Pattern for all that lies beside the data: DVC reads every folder of its repository, and a scratch disk has millions of files."""
LIST_SUFFIX = ".dir"
"""Suffix of the md5 of a file list."""


@contextmanager
def open_dvc(root: Path, folder: str) -> Iterator[Repo]:
    """Open the DVC repository at ``root``, without analytics; initialize it for the folder with this name if there is none.

    Raises:
        MachineFault: the machine failed.
        JobFailed: DVC raised an error.
    """
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_objects.errors import ObjectDBError

    logging.getLogger("dvc").setLevel(logging.WARNING)  # its hints refer to DVC commands, not to those of OmniMRI
    try:
        if not (root / ".dvc").is_dir():
            _initialize(root, folder)
        # An archive has .dvc/config but no .git: without this, DVC would refuse it, or use a repository around it.
        repo = Repo(str(root), config=None if (root / ".git").exists() else {"core": {"no_scm": True}})
        try:
            _remove_damaged_lock(repo)
            yield repo
        finally:
            repo.close()
    except OSError as error:
        raise_machine_fault(error, own_file(error, root) or str(root))
        raise
    except (DvcException, ObjectDBError) as error:
        raise_machine_fault(error, own_file(error, root) or str(root))
        raise JobFailed(f"DVC: {error}", where=str(root), remedy="run `dvc doctor` in this folder") from error


def _remove_damaged_lock(repo: Repo) -> None:
    """Remove the file of DVC's locks if it is cut: DVC writes it in place, and after a full disk every command would refuse it."""
    from dvc.lock import make_lock
    from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

    path = Path(repo.tmp_dir or repo.root_dir) / RWLOCK_FILE
    if path.is_file() and not _is_json(path):
        hardlink = repo.config["core"].get("hardlink_lock", False)
        with make_lock(str(path.with_name(RWLOCK_LOCK)), tmp_dir=str(path.parent), hardlink_lock=hardlink):
            if not _is_json(path):  # another process may have been writing it
                path.unlink(missing_ok=True)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _initialize(root: Path, folder: str) -> None:
    from dvc.config_schema import RelPath
    from dvc.repo import Repo

    in_git = (root / ".git").exists()
    write_ignored(root, folder, only_data=not in_git)  # in a git repository DVC skips what git ignores
    repo = Repo.init(str(root), no_scm=not in_git)
    try:
        with repo.config.edit() as config:
            config["core"].update({"remote": REMOTE, "analytics": False, "autostage": False})
            # Relative in the file: the folder may be moved, and DVC writes paths in ASCII only.
            config["remote"][REMOTE] = {"url": RelPath(root / REMOTE_FOLDER)}
    finally:
        repo.close()


def write_ignored(root: Path, folder: str, only_data: bool = False) -> None:
    """Exclude the files of unfinished ingestions from all versions (``.dvcignore``).

    Args:
        root: of the repository.
        folder: name of the data folder in it.
        only_data: exclude also all that lies beside the data, from now on; the repository has no other use.
    """
    path = root / ".dvcignore"
    present = path.read_text().splitlines() if path.exists() else []
    lines = [*present, *(name for name in UNFINISHED if name not in present)]
    if only_data or FOREIGN in lines:
        name = re.sub(r"([\\*?\[\] ])", r"\\\1", folder)
        first = [FOREIGN, f"!/{name}", f"!/{name}.dvc"]  # a later pattern decides: what is unfinished has to come after these
        lines = [*first, *(line for line in lines if line not in first)]
    if set(lines) != set(present):
        with atomic_file(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines))


def add_folder(repo: Repo, folder: Path) -> None:
    """Save the files of a folder in the cache and pin them, as ``dvc add`` does; the pin is written once all files are saved.

    Raises:
        MachineFault: a disk failed; the last version is still pinned.
        JobFailed: files could not be saved for another reason.
    """
    from dvc.repo import lock_repo
    from dvc.repo.add import get_or_create_stage
    from dvc.stage.serialize import to_single_stage_file
    from dvc.utils.serialize import dumps_yaml

    with lock_repo(repo), repo.scm_context, _collect_errors() as errors:
        stage = get_or_create_stage(repo, str(folder)).stage
        stage.add_outs()
        if not errors and _remove_cut_objects(repo, folder, stage.outs[0].hash_info.value):
            stage.add_outs()
        if errors:
            _raise_system_fault(errors, str(repo.cache.local.path))
            raise JobFailed(
                f"{len(errors)} files could not be saved as a version", where=str(folder), remedy="run `dvc doctor` in this folder"
            )
        with atomic_file(Path(stage.path)) as temporary:  # DVC itself truncates the pin before it writes
            temporary.write_text(dumps_yaml(to_single_stage_file(stage)))


def _remove_cut_objects(repo: Repo, folder: Path, file_list: str) -> int:
    """Remove the objects of a version that are shorter or longer than their files from the cache; return their number.

    DVC creates an empty object before it clones a file (reflink). If neither cloning nor removing is possible, the object stays,
    and DVC takes it for the file from then on.
    """
    cut = 0
    for name, md5 in parse_file_list(object_path(repo, file_list).read_bytes()).items():
        path = object_path(repo, md5)
        if path.exists() and path.stat().st_size != (folder / name).stat().st_size:
            path.unlink()
            cut += 1
    return cut


def has_remote(repo: Repo) -> bool:
    """Return whether a default remote is configured."""
    return bool(repo.config["core"].get("remote"))


def require_remote(repo: Repo) -> None:
    """Raise unless a default remote is configured.

    Raises:
        BadInput: there is no default remote.
    """
    if not has_remote(repo):
        raise BadInput("no remote to push to or pull from", where=".dvc/config", remedy="dvc remote add --default NAME URL")


def object_path(repo: Repo, name: str) -> Path:
    """Return the path of an object in the cache."""
    return Path(repo.cache.local.oid_to_path(name))


def read_file_list(repo: Repo, digest: str) -> dict[str, str]:
    """Return path -> md5 of the files of a version; fetch the list if the cache lacks it.

    Raises:
        BadInput: the cache lacks the list and there is no remote.
        JobFailed: the remote lacks the list, too.
    """
    fetch_objects(repo, {f"{digest}{LIST_SUFFIX}"})
    return parse_file_list(object_path(repo, f"{digest}{LIST_SUFFIX}").read_bytes())


def parse_file_list(content: bytes) -> dict[str, str]:
    """Return path -> md5 from the content of a file list."""
    return {entry["relpath"]: entry["md5"] for entry in json.loads(content)}


def cached_file_lists(repo: Repo, prefix: str = "") -> dict[str, Path]:
    """Return digest -> path of the file lists in the cache, for versions whose digest starts with ``prefix``."""
    folder = prefix[:2] if len(prefix) >= 2 else "??"
    lists = sorted(Path(repo.cache.local.path).glob(f"{folder}/*{LIST_SUFFIX}"))
    by_digest = {path.parent.name + path.name.removesuffix(LIST_SUFFIX): path for path in lists}
    return {digest: path for digest, path in by_digest.items() if digest.startswith(prefix)}


def remote_has_version(repo: Repo, digest: str) -> bool:
    """Return whether the default remote contains a complete version; False without a remote."""
    return has_remote(repo) and bool(repo.cloud.get_remote_odb().exists(f"{digest}{LIST_SUFFIX}"))


def push_version(repo: Repo, digest: str) -> None:
    """Send the objects of a version that the default remote lacks, the file list last.

    Raises:
        JobFailed: some objects could not be transferred.
    """
    objects, (cache, remote) = set(read_file_list(repo, digest).values()), (repo.cache.local, repo.cloud.get_remote_odb())
    if list(_complete_objects(cache, remote, {f"{digest}{LIST_SUFFIX}"})):
        return
    missing = sorted(objects - set(_complete_objects(cache, remote, objects)))
    _transfer(missing, repo.cloud.push, cache, remote, "sending files")
    _transfer([f"{digest}{LIST_SUFFIX}"], repo.cloud.push, cache, remote, "sending the list")


def _complete_objects(source: Any, target: Any, objects: set[str]) -> Iterator[str]:
    """Yield the objects that a store has; between two folders, remove those that have another size in the source.

    A folder may keep an empty object of an earlier transfer if neither writing nor removing it was possible. Other stores show an
    object when it is complete.
    """
    folders = {source.fs.protocol, target.fs.protocol} == {"local"}
    for name in target.list_oids_exists(objects):
        ours, theirs = (Path(store.oid_to_path(name)) for store in (source, target))
        if folders and ours.exists() and theirs.stat().st_size != ours.stat().st_size:
            theirs.unlink()
        else:
            yield name


def fetch_objects(repo: Repo, objects: set[str]) -> None:
    """Fetch the objects that the cache lacks from the default remote.

    Raises:
        BadInput: objects are missing and there is no remote.
        JobFailed: the remote lacks objects.
    """
    missing = sorted(md5 for md5 in objects if not repo.cache.local.exists(md5))
    if missing:
        require_remote(repo)
        _transfer(missing, repo.cloud.pull, repo.cloud.get_remote_odb(), repo.cache.local, "fetching files")


def _transfer(objects: list[str], transfer: Callable[..., Any], source: Any, target: Any, label: str) -> None:
    """Push or pull objects in batches.

    Args:
        transfer: push or pull method of DVC.
        source, target: object stores that send and receive the objects.
        label: label of the progress display.

    Raises:
        MachineFault: a disk or the network file system failed.
        JobFailed: objects are missing in the target afterwards.
    """
    from dvc_data.hashfile.db import get_index
    from dvc_data.hashfile.hash_info import HashInfo

    get_index(target).clear()  # DVC's index of the target is stale if the remote has been deleted since
    with _collect_errors() as errors:
        for start in track(range(0, len(objects), BATCH_SIZE), f"{label}, {BATCH_SIZE} at a time"):
            transfer([HashInfo("md5", md5) for md5 in objects[start : start + BATCH_SIZE]])
    if missing := set(objects) - set(_complete_objects(source, target, set(objects))):
        _raise_system_fault(errors, str(target.path))
        raise JobFailed(
            f"{len(missing)} of {len(objects)} objects could not be transferred",
            where=min(missing),
            remedy="run the command again; if the error persists, the remote is incomplete: push from a machine with this version",
        )


def _raise_system_fault(errors: list[BaseException], where: str) -> None:
    """Raise the first fault of the machine among errors, if there is one."""
    for error in errors:
        if fault := find_system_fault(error, where):
            raise fault from error


class _ErrorCollector(logging.Handler):
    """Keeps the errors that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self.errors.append(record.exc_info[1])


@contextmanager
def _collect_errors() -> Iterator[list[BaseException]]:
    """Collect the errors of single objects: DVC's transfer logs them and continues with the next object."""
    logger, collector = logging.getLogger("dvc_data.hashfile.transfer"), _ErrorCollector()
    logger.addHandler(collector)
    try:
        yield collector.errors
    finally:
        logger.removeHandler(collector)
