"""Processes that end together with the one that started them, and the request to stop."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that SIGTERM has stopped, as shells and service managers count it."""


class Terminated(BaseException):
    """A request to stop (SIGTERM); handlers of errors must not catch it."""


def end_with_parent(parent: int | None = None) -> None:
    """On Linux, let the kernel send SIGTERM to this process when the thread that started it ends, even by SIGKILL.

    Args:
        parent: process id of the parent; if it has ended before this call, SIGTERM is sent at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def raise_on_sigterm() -> None:
    """Let SIGTERM raise :class:`Terminated` in the main thread, so that children are stopped and messages are written."""

    def receive(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, receive)
