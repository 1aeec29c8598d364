"""A private folder for originals, which contain the patients' names: it is removed whatever happens.

A guard process waits for the end of this one, killed or not, and removes the folder; after a power failure, the next start does.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from components.home import Home
from components.pacs.ledger import pacs_folder

_PREFIX, _LOCK = "originals-", ".lock"
_GUARD = 'cat >/dev/null; rm -rf -- "$0"'


@contextmanager
def originals_folder(home: Home) -> Iterator[Path]:
    """Yield an empty folder that only this user may enter, on the disk of the home folder; remove it at the end."""
    parent = pacs_folder(home)
    remove_abandoned(home)
    root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
    guard = subprocess.Popen(["/bin/sh", "-c", _GUARD, str(root)], stdin=subprocess.PIPE, start_new_session=True)
    try:
        with (root / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            folder = root / "files"
            folder.mkdir()
            yield folder
    finally:
        shutil.rmtree(root, ignore_errors=True)
        guard.communicate()


def remove_abandoned(home: Home) -> int:
    """Remove the folders of processes that ended without removing them; return how many there were."""
    removed = 0
    for root in pacs_folder(home).glob(f"{_PREFIX}*"):
        try:
            with (root / _LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process is alive
        except OSError:
            pass
        shutil.rmtree(root, ignore_errors=True)
        removed += 1
    return removed


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
