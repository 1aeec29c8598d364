"""One writer at a time, across processes: locks on files, which the kernel gives back when a process ends, however it ends.

``writer`` is held by whoever may write ``data/`` and the corpus; ``corpus`` for writing as long as they change, for reading as long
as a model is trained or measured on them. Who wants to write waits for those who read.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[Path] = set()


@contextmanager
def claim(path: Path, shared: bool = False, waiting: Callable[[str], object] | None = None) -> Iterator[None]:
    """Hold a lock file while the context is open. A process that holds it already goes on at once.

    Args:
        shared: others may hold it too, if all of them share.
        waiting: told once, with the process that has the lock, where it has to be waited for.
    """
    if path in _held:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("a+") as file:
        try:
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is not None:
                file.seek(0)
                waiting(f"waiting for process {file.read().strip() or 'unknown'}, which holds {path.name}")
            fcntl.flock(file, mode)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _held.add(path)
        try:
            yield
        finally:
            _held.discard(path)
