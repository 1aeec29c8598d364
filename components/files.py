"""Files and folders: atomic writes (under a temporary name beside the target, then renamed), JSON, and walks of folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from components.provenance import digest


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk, and raise the error that writing it there met, if any."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path, which becomes ``target`` on success and is removed on failure."""
    temporary = _temporary(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder, which replaces ``target`` as a whole on success and is removed on failure."""
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            replaced = _temporary(target)
            target.replace(replaced)
            temporary.replace(target)
            shutil.rmtree(replaced)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _encode_plain(value: Any) -> Any:
    """Return the JSON form of a numpy or path value. NumPy is not imported for values that cannot be its own."""
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):  # arrays and scalars
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def to_json(value: Any) -> str:
    """Return ``value`` as sorted, indented JSON with a final line break."""
    return json.dumps(value, indent=1, sort_keys=True, default=_encode_plain) + "\n"


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as sorted, indented JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(to_json(value))


def read_json(source: Path) -> Any:
    """Read one JSON document."""
    return json.loads(source.read_text())


def read_state(source: Path) -> dict[str, Any]:
    """Read a JSON file of our own state; return an empty mapping where it is missing, cut or damaged: it can be made again."""
    try:
        content = json.loads(source.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_lines(source: Path) -> list[Any]:
    """Read a JSON Lines file; return an empty list where there is no file."""
    return [json.loads(line) for line in source.read_text().splitlines()] if source.exists() else []


UnreachedKind = Literal["dangling link", "link loop", "locked folder", "locked file", "special file"]


class Unreached(NamedTuple):
    """An entry of a folder that cannot be read.

    Attributes:
        path: the entry.
        kind: the reason.
    """

    path: Path
    kind: UnreachedKind


@dataclass
class FolderWalk:
    """Entries below a folder, links followed.

    Attributes:
        files: regular files, with their status.
        unreached: entries that cannot be read.
        linked_folders: links to folders, which were followed.
    """

    files: dict[Path, os.stat_result] = field(default_factory=dict)
    unreached: list[Unreached] = field(default_factory=list)
    linked_folders: list[Path] = field(default_factory=list)


_LOCKED = frozenset({errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})
_FolderId = tuple[int, int]


def walk_folder(folder: Path) -> FolderWalk:
    """List everything below a folder as ``find -L`` does: links are followed, except to a folder above themselves.

    Raises:
        OSError: the folder itself cannot be listed, or the machine fails; a lacking permission below it is in the result.
    """
    walk = FolderWalk()
    status = folder.stat()
    pending: list[tuple[Path, frozenset[_FolderId]]] = [(folder, frozenset({(status.st_dev, status.st_ino)}))]
    while pending:
        current, above = pending.pop()
        try:
            with os.scandir(current) as entries:
                listed = list(entries)
        except OSError as error:
            if error.errno not in _LOCKED or current == folder:
                raise
            walk.unreached.append(Unreached(current, "locked folder"))
            continue
        for entry in listed:
            subfolder = _visit(entry, current / entry.name, above, walk)
            if subfolder is not None:
                pending.append((current / entry.name, above | {subfolder}))
    return walk


def _visit(entry: os.DirEntry[str], path: Path, above: frozenset[_FolderId], walk: FolderWalk) -> _FolderId | None:
    """Add one entry to a walk; return the identity of a folder that is to be listed.

    Args:
        above: identities of the folders that the entry lies in.
    """
    try:
        status = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():
            walk.unreached.append(Unreached(path, "dangling link"))
        return None  # without a link: the entry was removed after it was listed
    except OSError as error:
        if error.errno == errno.ELOOP:
            walk.unreached.append(Unreached(path, "dangling link"))
        elif error.errno in _LOCKED:
            walk.unreached.append(Unreached(path, "locked folder" if entry.is_dir(follow_symlinks=False) else "locked file"))
        else:
            raise
        return None
    if stat.S_ISREG(status.st_mode):
        walk.files[path] = status
    elif not stat.S_ISDIR(status.st_mode):
        walk.unreached.append(Unreached(path, "special file"))
    elif (status.st_dev, status.st_ino) in above:
        walk.unreached.append(Unreached(path, "link loop"))
    else:
        if entry.is_symlink():
            walk.linked_folders.append(path)
        return status.st_dev, status.st_ino
    return None


def folder_state(folder: Path) -> str:
    """Return the digest of the names, sizes and modification times of all files below a folder; "" where there is no folder."""
    if not folder.is_dir():
        return ""
    files = walk_folder(folder).files.items()
    return digest(sorted([os.path.relpath(path, folder), status.st_size, status.st_mtime_ns] for path, status in files))
