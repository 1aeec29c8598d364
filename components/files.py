"""Atomic writes of files and folders: write under a temporary name beside the target, then rename."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from components.provenance import digest


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


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


def _to_json(value: Any) -> Any:
    """Return the JSON form of a numpy or path value."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as sorted, indented JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=_to_json) + "\n")


def read_json(source: Path) -> Any:
    """Read one JSON document."""
    return json.loads(source.read_text())


def read_lines(source: Path) -> list[Any]:
    """Read a JSON Lines file; return an empty list where there is no file."""
    return [json.loads(line) for line in source.read_text().splitlines()] if source.exists() else []


def folder_state(folder: Path) -> str:
    """Return the digest of the names, sizes and modification times of all files below a folder; "" where there is no folder."""
    if not folder.is_dir():
        return ""
    files: list[list[str | int]] = []
    pending = [str(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue  # the file was removed after it was listed
                files.append([os.path.relpath(entry.path, folder), status.st_size, status.st_mtime_ns])
    return digest(sorted(files))
