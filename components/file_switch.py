"""Replace several files of a folder together: all or none, whatever fails in between.

New files are collected in ``.incoming``. The switch moves each to its place, the file that it replaces to ``.replaced``, and the
decisive file last. An error before that moment leaves the old files, one after it the new ones. What a kill leaves is completed or
undone by :meth:`FileSwitch.recover`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from components.errors import JobFailed
from components.files import read_json, sync, write_json
from components.provenance import file_md5

INCOMING, REPLACED, RECORD = ".incoming", ".replaced", ".switch.json"
"""Folders of new and of replaced files, and the record of a switch in progress."""


class FileSwitch:
    """A folder whose files are replaced together.

    Attributes:
        root: the folder.
        decisive: name of the file that is replaced last.
        incoming: folder of new files, under the same relative names.
    """

    def __init__(self, root: Path, decisive: str) -> None:
        self.root, self.decisive = root, decisive
        self.incoming = root / INCOMING

    def commit(self, names: Sequence[str]) -> None:
        """Move new files and the decisive one, which must be in :attr:`incoming`, to their places; remove the replaced ones.

        Raises:
            OSError: the old files are in place; or, after the decisive file was replaced, the new ones.
        """
        for name in (*names, self.decisive):
            sync(self.incoming / name)
        try:
            write_json(self.root / RECORD, {"decisive": file_md5(self.incoming / self.decisive), "files": list(names)})
            for name in names:
                _move(self.root / name, self.root / REPLACED / name)
                _move(self.incoming / name, self.root / name)
            (self.incoming / self.decisive).replace(self.root / self.decisive)
        except BaseException:
            with contextlib.suppress(OSError):  # the next writer repeats it
                self.recover()
            raise
        self.recover()

    def recover(self) -> None:
        """Complete or undo an interrupted switch; do nothing without one."""
        if not is_switching(self.root):
            return
        record, decisive = read_json(self.root / RECORD), self.root / self.decisive
        if not decisive.exists() or file_md5(decisive) != record["decisive"]:
            for name in record["files"]:
                self._undo(name)
        if (self.root / REPLACED).exists():
            shutil.rmtree(self.root / REPLACED)  # an error leaves the record, so that the next writer repeats it
        (self.root / RECORD).unlink()

    def _undo(self, name: str) -> None:
        """Return a new file to :attr:`incoming`, and the old one to its place."""
        place, incoming, replaced = self.root / name, self.incoming / name, self.root / REPLACED / name
        if not incoming.exists():
            _move(place, incoming)
        _move(replaced, place)


def is_switching(root: Path) -> bool:
    """Return whether a switch was interrupted, so that old and new files may be mixed."""
    return (root / RECORD).exists()


def require_switched(root: Path, command: str) -> None:
    """Refuse to read a folder in which a switch was interrupted.

    Args:
        command: completes or undoes it.

    Raises:
        JobFailed: one was.
    """
    if is_switching(root):
        raise JobFailed(f"{command} was interrupted while it replaced files", where=root.name, remedy=f"run {command} again")


def _move(source: Path, target: Path) -> None:
    """Rename a file, if it exists."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
