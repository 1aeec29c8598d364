"""A disk that fails: operating system errors at chosen file operations below a folder, and real small disks.

:class:`FaultyDisk` replaces the functions of ``os``, ``io`` and ``builtins`` through which Python code changes files, nothing above
them. Libraries that write in C++ (pyarrow, HDF5, SQLite) bypass these functions: for them, :func:`small_disk` mounts a tmpfs.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

TAKES_SPACE = frozenset({"open", "write", "sendfile", "mkdir", "link", "symlink", "fsync"})
"""Operations that a full disk refuses; renaming and removing need no space."""
CHANGES_NAMES = frozenset({"open", "mkdir", "link", "symlink", "replace", "rename", "unlink", "remove", "rmdir"})
"""Operations that permissions may forbid."""
ALL = TAKES_SPACE | CHANGES_NAMES
KILL = -1
"""In place of an error number: the process ends, so that no later operation takes place either."""
OPERATIONS = {KILL: ALL, errno.ENOSPC: TAKES_SPACE, errno.EACCES: CHANGES_NAMES, errno.EIO: ALL}
"""Number of an error -> the operations that meet it."""


class Killed(BaseException):
    """Stand-in for SIGKILL: no handler of errors may stop it, and with a lasting fault no cleanup changes a file."""


class FaultyDisk:
    """Let one file operation below a folder fail, or all from that one on.

    Attributes:
        root: folder of the faulty disk.
        number: the error (``errno``); None only counts operations.
        at: index of the first operation that fails, among those that can meet this error.
        lasting: the later ones fail, too.
        met: the operations so far.
    """

    def __init__(self, root: Path, number: int | None = None, at: int = 0, lasting: bool = False) -> None:
        self.root, self.number, self.at, self.lasting = str(root.resolve()), number, at, lasting
        self.operations = ALL if number is None else OPERATIONS[number]
        self.met: list[str] = []

    def check(self, operation: str, target: Any, folder: int | None = None) -> None:
        """Count one operation.

        Args:
            target: path or descriptor.
            folder: descriptor of the folder that a relative path starts from.

        Raises:
            Killed: the same, for :data:`KILL`.
            OSError: its turn to fail has come.
        """
        path = str(_locate(target, folder))
        if operation not in self.operations or not path.startswith(self.root + os.sep):
            return
        index = len(self.met)
        self.met.append(operation)
        if self.number is not None and (index == self.at or (self.lasting and index > self.at)):
            if self.number == KILL:
                raise Killed
            raise OSError(self.number, os.strerror(self.number), None if isinstance(target, int) else path)

    @property
    def failed(self) -> bool:
        """Return whether an operation has failed."""
        return len(self.met) > self.at

    @contextmanager
    def mounted(self) -> Iterator[FaultyDisk]:
        """Replace the file operations of this process."""
        replaced = [patch.object(os, name, self._wrap(name)) for name in sorted(ALL - {"open"})]
        replaced += [patch.object(os, "open", self._os_open()), *[patch.object(at, "open", self._open()) for at in (io, builtins)]]
        for one in replaced:
            one.start()
        try:
            yield self
        finally:
            for one in replaced:
                one.stop()

    def _wrap(self, name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def operation(*args: Any, **kwargs: Any) -> Any:
            self.check(name, args[1] if name in {"replace", "rename", "link", "symlink"} else args[0], kwargs.get("dir_fd"))
            return original(*args, **kwargs)

        return operation

    def _os_open(self) -> Callable[..., int]:
        original = os.open

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.check("open", path, kwargs.get("dir_fd"))
            return original(path, flags, *args, **kwargs)

        return opened

    def _open(self) -> Callable[..., Any]:
        original = io.open

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not set(mode) & set("wax+") or isinstance(file, int):
                return original(file, mode, buffering, encoding, errors, newline, closefd, opener)
            self.check("open", file)
            raw = _FaultyFile(self, file, mode.replace("b", "").replace("t", ""), opener)
            if buffering == 0:
                return raw
            buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, io.text_encoding(encoding), errors, newline, line_buffering=buffering == 1)

        return opened


def _locate(target: Any, folder: int | None) -> Path:
    """Return the path of an operation's target."""
    if isinstance(target, int):
        return Path(f"/proc/self/fd/{target}").readlink()
    path = Path(os.fsdecode(target))
    return path.absolute() if folder is None else Path(f"/proc/self/fd/{folder}").readlink() / path


class _FaultyFile(io.FileIO):
    """A file whose writes pass through a :class:`FaultyDisk`."""

    def __init__(self, disk: FaultyDisk, file: Any, mode: str, opener: Any) -> None:
        super().__init__(file, mode, opener=opener)
        self._disk, self._path = disk, Path(os.fsdecode(file))

    def write(self, content: Any) -> int:
        self._disk.check("write", self._path)
        return super().write(content)


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """Mount a tmpfs of so many KiB on a folder; skip the test where this process may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    command = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
    if command is None or subprocess.run([command, *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the permission to mount a tmpfs (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize_disk(folder: Path, kib: int) -> None:
    """Give a mounted :func:`small_disk` another size."""
    subprocess.run(["mount", "-o", f"remount,size={kib}k", str(folder)], check=True)
