"""Uploads and answers that a server keeps for a while: limited in time and size, in a folder that vanishes with the server."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

from components.errors import OmniMRIError
from components.inference.untrusted_input import Limits

T = TypeVar("T")


class NotKept(OmniMRIError):
    """An upload or answer that does not exist, or no longer (HTTP 404)."""


@dataclass
class Entry:
    """A kept object with its folder; several objects may share one folder."""

    value: Any
    folder: Path
    size: int
    used: float


@dataclass
class Kept:
    """Objects under random ids, which nobody can guess.

    Attributes:
        root: folder of all folders.
        clock: seconds, increasing.
    """

    root: Path
    limits: Limits
    clock: Callable[[], float] = time.monotonic
    _entries: dict[str, Entry] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def create_folder(self) -> Path:
        """Create an empty folder."""
        folder = self.root / secrets.token_hex(12)
        folder.mkdir()
        return folder

    def add(self, values: list[T], folder: Path) -> list[str]:
        """Keep objects whose files are in a folder; return their ids. The oldest others are removed beyond the limits."""
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        with self._lock:
            ids = [secrets.token_urlsafe(12) for _ in values]
            for key, value in zip(ids, values, strict=True):
                self._entries[key] = Entry(value, folder, size, self.clock())
            self._remove_old(set(ids))
        return ids

    def get(self, key: str, kind: type[T]) -> T:
        """Return an object, which thereby is kept longer.

        Raises:
            NotKept: no such object of this kind.
        """
        with self._lock:
            self._remove_old({key})
            entry = self._entries.get(key)
            if entry is None or not isinstance(entry.value, kind):
                raise NotKept("no such object here any longer", where=kind.__name__, remedy="upload the image again")
            now = self.clock()
            for other in self._entries.values():
                if other.folder == entry.folder:
                    other.used = now
            return entry.value

    def remove_old(self) -> None:
        """Remove what is kept for longer than the limits allow."""
        with self._lock:
            self._remove_old(set())

    def remove(self, key: str) -> None:
        """Forget an object, and remove its folder with the last one in it; nothing happens without such an object."""
        with self._lock:
            self._remove(key)

    def _remove_old(self, exempt: set[str]) -> None:
        now = self.clock()
        for key, entry in list(self._entries.items()):
            if now - entry.used > self.limits.kept_seconds:
                self._remove(key)
        for key in sorted(self._entries, key=lambda one: self._entries[one].used):
            if sum({entry.folder: entry.size for entry in self._entries.values()}.values()) <= self.limits.kept_bytes:
                return
            if key not in exempt:
                self._remove(key)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None and all(other.folder != entry.folder for other in self._entries.values()):
            shutil.rmtree(entry.folder, ignore_errors=True)
