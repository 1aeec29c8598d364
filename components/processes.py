"""Processes that end together with the one that started them, and the request to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType
from uuid import uuid4

import psutil

_PR_SET_PDEATHSIG = 1
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
"""Requests to stop: of service managers and batch systems, and of a terminal that was closed."""


class Terminated(BaseException):
    """A request to stop; handlers of errors must not catch it.

    Attributes:
        signal: the one that was received.
        status: exit status of the process, as shells and service managers count it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal, self.status = signal.Signals(number), 128 + number


def end_with_parent(parent: int | None = None) -> None:
    """On Linux, let the kernel send SIGTERM to this process when the thread that started it ends, even by SIGKILL.

    Args:
        parent: process id of the parent; if it has ended before this call, SIGTERM is sent at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def on_stop(receive: Callable[[int, FrameType | None], object], *more: signal.Signals) -> None:
    """Call a function on :data:`STOP_SIGNALS` and on some more. A SIGHUP that ``nohup`` has switched off stays so."""
    for number in (*STOP_SIGNALS, *more):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, receive)


def raise_on_stop() -> None:
    """Let a request to stop raise :class:`Terminated` in the main thread, so that children are stopped and messages are written."""

    def receive(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    on_stop(receive)


def signal_groups(groups: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to process groups; those that have ended are left out."""
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)


def stop_groups(groups: Iterable[int], seconds: float, reap: Callable[[], object] = lambda: None) -> None:
    """Send SIGTERM to process groups, and SIGKILL to those that remain after a while.

    Args:
        seconds: to wait after each signal.
        reap: called while waiting.
    """
    remaining = list(groups)
    for number in (signal.SIGTERM, signal.SIGKILL):
        signal_groups(remaining, number)
        deadline = time.monotonic() + seconds
        while (remaining := [group for group in remaining if has_members(group)]) and time.monotonic() < deadline:
            reap()
            time.sleep(0.2)


def has_members(group: int) -> bool:
    """Return whether a process of a process group still runs."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(process.status() != psutil.STATUS_ZOMBIE for process in _members(group))


def _members(group: int) -> list[psutil.Process]:
    members = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                members.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return members


GUARDED = "OMNIMRI_GUARDED_BY"
"""Environment variable of processes that a guard stops."""
_RELEASED = "released"
_STARTING_S = 0.5
"""Time for a process between fork and exec, which has the environment of its parent."""


class Guard:
    """A process that stops process groups if this process ends without having done it, even by SIGKILL.

    It waits for the end of a pipe whose other end only this process has. A process that was started just before, of which the guard
    has not been told, is found by a variable of its environment.

    Args:
        seconds: as in :func:`stop_groups`.

    Attributes:
        mark: value of the variable :data:`GUARDED` of the processes to stop.
    """

    def __init__(self, seconds: float) -> None:
        self.mark = uuid4().hex
        command = [sys.executable, "-m", "components.processes", str(seconds), self.mark]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
        )

    def watch(self, groups: Iterable[int]) -> None:
        """Replace the groups to stop; they are stopped in this order."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # somebody killed the guard
            self._process.stdin.write(f"{' '.join(map(str, groups))}\n")
            self._process.stdin.flush()

    def stop_remaining(self, seconds: float) -> None:
        """Stop all processes that still have the mark: a request to stop may interrupt a start before the process id is known."""
        time.sleep(_STARTING_S)
        stop_groups(_marked_groups(self.mark), seconds)

    def release(self) -> None:
        """End the guard; it stops nothing."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{_RELEASED}\n")
        with suppress(BrokenPipeError):
            self._process.communicate()


def _guard(seconds: float, mark: str) -> None:
    """Stop the groups of the last line of standard input when it ends, and those of processes with the mark; none if released."""
    groups: list[int] = []
    for line in sys.stdin:
        if line.strip() == _RELEASED:
            return
        if line.endswith("\n"):
            groups = [int(word) for word in line.split()]
    time.sleep(_STARTING_S)
    for group in dict.fromkeys([*groups, *_marked_groups(mark)]):
        stop_groups([group], seconds)


def _marked_groups(mark: str) -> list[int]:
    """Return the groups of the processes whose environment has the mark, each once."""
    found: dict[int, None] = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(GUARDED) == mark:
                found[os.getpgid(process.pid)] = None
    return list(found)


if __name__ == "__main__":
    _guard(float(sys.argv[1]), sys.argv[2])
