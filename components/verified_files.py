"""Verification of files before they are used: MD5 sums, cached by inode, size and times of change, and seals of finished folders.

The cache makes a verification of unchanged files nearly free: it reads no content.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from components.files import read_json, write_json
from components.home import Home
from components.provenance import file_md5

VERIFIED = "verified.json"
"""File of the home: path -> inode, size, times of modification and change, MD5."""
SEAL = "seal.json"
"""File of a finished folder, written last: relative path -> MD5 of all other files."""
Cache = dict[str, list[int | str]]


def cached_md5(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the MD5 of each file; read only the content of those that changed since their last verification."""
    cache = Home.open().root / VERIFIED
    known = _read_cache(cache)
    entries: Cache = {}
    for path in paths:
        state, name = _file_state(path), str(path.absolute())
        entry = known.get(name, [])
        entries[name] = entry if entry[:-1] == state else [*state, file_md5(path)]
    if any(known.get(name) != entry for name, entry in entries.items()):
        _write_cache(cache, {**known, **entries})
    return {Path(name): str(entry[-1]) for name, entry in entries.items()}


def _file_state(path: Path) -> list[int | str]:
    """Return inode, size, and times of modification and change of a file: they change when its content is written."""
    status = path.stat()
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_cache(path: Path) -> Cache:
    """Return the verified files; empty where the cache is missing or damaged."""
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def _write_cache(path: Path, known: Cache) -> None:
    """Write the verified files that still exist; do nothing in a home that cannot be written."""
    if path.parent.is_dir() and os.access(path.parent, os.W_OK):
        try:
            write_json(path, {name: entry for name, entry in known.items() if Path(name).exists()})
        except OSError:  # a full disk: the next verification reads the files again
            return


def seal(folder: Path) -> None:
    """Record the MD5 of all files of a finished folder in it."""
    write_json(folder / SEAL, {name: file_md5(folder / name) for name in _names(folder)})


def is_sealed(folder: Path) -> bool:
    """Return whether a folder is finished, and its files are those that it was sealed with."""
    try:
        sealed = dict(read_json(folder / SEAL))
        sums = cached_md5(folder / name for name in sealed)
        return all(sums[(folder / name).absolute()] == md5 for name, md5 in sealed.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return False


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in files if path.name != SEAL)
