"""Writing so that nothing is ever half-written: a temporary name beside the target, then a rename."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


def _temporary(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path; on success it becomes ``target``, on failure it is removed."""
    temporary = _temporary(target)
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder; on success it replaces ``target`` whole, on failure it is removed."""
    temporary = _temporary(target)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            doomed = _temporary(target)
            target.replace(doomed)
            temporary.replace(target)
            shutil.rmtree(doomed)
        else:
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plain(value: Any) -> Any:
    """JSON form of the numpy and path values that records carry."""
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
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=_plain) + "\n")


def read_json(source: Path) -> Any:
    """Read one JSON document."""
    return json.loads(source.read_text())


def read_lines(source: Path) -> list[Any]:
    """Read a document of one JSON value a line; nothing where there is none."""
    return [json.loads(line) for line in source.read_text().splitlines()] if source.exists() else []
