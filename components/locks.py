"""Reader/writer locks between processes, on files: the kernel releases them when a process ends, however it ends.

The lock ``writer`` belongs to the process that may change ``data/`` and the corpus. The lock ``corpus`` is exclusive while they
change, and shared while a model is trained or evaluated on them: a writer waits for all readers.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from components.home import Home

Waiting = Callable[[str], object]
"""Receives a message once, before a process waits for a lock."""


class LockUpgradeError(RuntimeError):
    """A process that holds a shared lock requests the exclusive one: two such processes would wait for each other forever."""


_held_shared: dict[Path, bool] = {}
"""Locks that this process holds, and whether it shares them."""


@contextmanager
def claim(path: Path, shared: bool = False, waiting: Waiting | None = None) -> Iterator[None]:
    """Hold a lock file while the context is open. A process that holds the lock may claim it again.

    Args:
        path: lock file; it is created where it is missing.
        shared: other processes may hold the lock too, as long as all of them share it.
        waiting: called with a message that names the holder, before this process waits for the lock.

    Raises:
        LockUpgradeError: this process holds the lock as shared, and requests it as exclusive.
    """
    if path in _held_shared:
        if _held_shared[path] and not shared:
            raise LockUpgradeError(
                f"{path}: held as shared, requested as exclusive (release the shared lock first, or claim it as exclusive at once)"
            )
        yield  # the outermost context releases the lock; an exclusive lock covers a shared one
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        _acquire(file, path, shared, waiting)
        _held_shared[path] = shared
        try:
            yield
        finally:
            del _held_shared[path]


@contextmanager
def claim_data(home: Home, waiting: Waiting | None = None) -> Iterator[None]:
    """Hold the lock ``writer`` while the context is open, also against the processes of another home with the same ``data/``.

    These meet at the folder that contains it, which is locked itself: a lock file there would be one more untracked file.

    Args:
        waiting: as in :func:`claim`.
    """
    folder = home.data.parent
    with claim(home.locks / "writer", waiting=waiting):
        if folder in _held_shared:
            yield
            return
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            _lock_folder(descriptor, folder, waiting)
            _held_shared[folder] = False
            yield
        finally:
            _held_shared.pop(folder, None)
            os.close(descriptor)


def _lock_folder(descriptor: int, folder: Path, waiting: Waiting | None) -> None:
    """Lock an open folder; a file system that cannot lock folders (NFS) leaves it at the lock of the home."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            waiting(f"waiting for a process of another home, which changes the data in {folder}")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOLCK, errno.ENOTSUP):
            raise


def _acquire(file: IO[str], path: Path, shared: bool, waiting: Waiting | None) -> None:
    """Lock an open file, waiting for other holders, and write this process's id into it."""
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        if waiting is not None:
            file.seek(0)
            waiting(f"waiting for process {file.read().strip() or 'unknown'}, which holds the lock {path.name}")
        fcntl.flock(file, mode)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
