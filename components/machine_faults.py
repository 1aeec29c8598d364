"""Faults of the machine: distinguish them from faults of an input, and state what the user can do about them.

The kernel reports them by number (``OSError.errno``). Libraries raise an ``OSError`` without a number for a damaged file, so that
the number decides; an error that a library raised because of another one is classified by its cause.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from components.errors import MachineFault

_AGAIN = "then run the command again: it resumes where it stopped"
FAULTS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space left on the disk", f"free some space, {_AGAIN}"),
    errno.EDQUOT: ("the disk quota is exceeded", f"free some space or raise the quota, {_AGAIN}"),
    errno.EFBIG: ("a file is larger than the file system or a limit allows", f"raise the limit (ulimit -f), {_AGAIN}"),
    errno.EIO: ("the disk reports an input/output error", f"check the disk (dmesg), {_AGAIN}"),
    errno.EROFS: ("the file system is read-only", f"mount it writable, or set OMNIMRI_HOME and OMNIMRI_DATA; {_AGAIN}"),
    errno.EACCES: ("permission denied", f"correct the permissions, {_AGAIN}"),
    errno.EPERM: ("the operation is not permitted", f"correct owner and permissions, {_AGAIN}"),
    errno.EMFILE: ("too many open files in this process", f"raise the limit (ulimit -n), {_AGAIN}"),
    errno.ENFILE: ("too many open files on this machine", f"close other programs, {_AGAIN}"),
    errno.ENOMEM: ("out of memory", f"use fewer workers or a machine with more memory, {_AGAIN}"),
    errno.ESTALE: ("the network file system lost the file", f"check the mount, {_AGAIN}"),
    errno.ENXIO: ("the device does not answer", f"check the mount, {_AGAIN}"),
    errno.ENODEV: ("the device is gone", f"check the mount, {_AGAIN}"),
    errno.ENOTCONN: ("the file system is not connected", f"check the mount, {_AGAIN}"),
    errno.EHOSTDOWN: ("the file server does not answer", f"check the mount, {_AGAIN}"),
    errno.ETIMEDOUT: ("the file server does not answer", f"check the mount, {_AGAIN}"),
    errno.EREMOTEIO: ("the file server reports an input/output error", f"check the server, {_AGAIN}"),
}
"""Number of an operating system error -> (the fault, the remedy)."""
LIBRARY_ERRORS = frozenset({"OperationalError", "SafetensorError", "RuntimeError", "MlflowException"})
"""Errors of SQLite, safetensors, PyTorch and MLflow's store, which carry no number."""
TEXTS = {
    "no space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "disk quota exceeded": errno.EDQUOT,
    "attempt to write a readonly database": errno.EROFS,
    "read-only file system": errno.EROFS,
    "disk i/o error": errno.EIO,
}
"""Words in their messages -> number."""
PROBE_BYTES = 2**20
"""Size of a file that is written to find out whether a disk accepts one."""
NO_ACCESS = frozenset({errno.EACCES, errno.EPERM})
_BUG = "the input may be sound: please report this error with its type, and with the version that omnimri --version prints"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def find_system_fault(error: BaseException, where: str = "") -> MachineFault | None:
    """Return the fault of disk, permissions, memory or processes that an error means, None for any other error.

    Args:
        where: named in the message; without it, the message names no file (its name may be the patient's).
    """
    for cause in causes(error):
        if isinstance(cause, MachineFault):
            return cause
        if isinstance(cause, MemoryError):
            return MachineFault(FAULTS[errno.ENOMEM][0], where=where, remedy=FAULTS[errno.ENOMEM][1])
        if isinstance(cause, BrokenProcessPool):
            remedy = f"use fewer workers or a machine with more memory, {_AGAIN}"
            return MachineFault("a worker process was killed, probably for want of memory", where=where, remedy=remedy)
        number = cause.errno if isinstance(cause, OSError) else _number_in_text(cause)
        if number in FAULTS:
            what, remedy = FAULTS[number]
            return MachineFault(what, where=where, remedy=remedy)
    return None


def _number_in_text(error: BaseException) -> int | None:
    """Return the number of the operating system error that a library in another language reports by its text alone."""
    if type(error).__name__ not in LIBRARY_ERRORS:
        return None
    text = str(error).lower()
    return next((number for words, number in TEXTS.items() if words in text), None)


def find_machine_fault(error: BaseException, where: str = "") -> MachineFault | None:
    """Return the fault of the system (:func:`find_system_fault`) or of a program that an error on reading an input means.

    A damaged input can raise nearly any type of error in a library, but not these: they mean a missing package or a bug. A
    ``MemoryError`` is the input's: its header claims more than the machine could ever hold. A machine that runs out of memory kills
    the process instead.
    """
    if not isinstance(error, MachineFault) and any(isinstance(cause, MemoryError) for cause in causes(error)):
        return None
    fault = find_system_fault(error, where)
    if fault is not None:
        return fault
    for cause in causes(error):
        if isinstance(cause, (ImportError, SystemError, NameError, AssertionError)):
            return MachineFault(f"a program error, {type(cause).__name__}: the installation or a library", where=where, remedy=_BUG)
    return None


def raise_machine_fault(error: BaseException, where: str = "") -> None:
    """Raise the fault of the machine that an error means; return if it means another one.

    Call it first in every handler of errors that libraries raise for damaged files.

    Raises:
        MachineFault: the machine is at fault.
    """
    fault = find_machine_fault(error, where)
    if fault is error:
        raise fault
    if fault is not None:
        raise fault from error


def program_error(error: BaseException, doing: str, where: str) -> MachineFault:
    """Return the error of a step that no input can cause, such as writing what has been read."""
    fault = find_system_fault(error, where) or find_machine_fault(error, where)
    return fault or MachineFault(f"{doing} failed: {type(error).__name__}", where=where, remedy=_BUG)


def find_write_fault(folder: Path) -> MachineFault | None:
    """Return the fault that writing into a folder meets now: of a program that has ended and could not write its message there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return find_system_fault(error, str(folder))
    return None


def own_file(error: BaseException, *folders: Path) -> str:
    """Return the file that an operating system error names, if it lies in one of OmniMRI's own folders, else ""."""
    for cause in causes(error):
        if isinstance(cause, OSError) and isinstance(cause.filename, str | os.PathLike):
            path = Path(cause.filename)
            if any(folder in (path, *path.parents) for folder in folders):
                return str(path)
    return ""
