"""The log file of a command: everything that libraries and child processes print goes there, and only our progress to the terminal.

The redirection acts on file descriptors 1 and 2, so that it covers libraries in C++ and child processes too. ``sys.stdout`` and
``sys.stderr`` lead to the terminal again while the command prints its results. Everything later goes to the log file: at exit,
Prefect stops its temporary server, and reports it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from components.home import Home
from components.progress import report, show_on

OURS = ("components", "flows", "model_core", "kernels")
"""Packages whose warnings reach the terminal."""


@dataclass
class _State:
    """The redirection of this process.

    Attributes:
        enabled: this process belongs to the command alone, so that its descriptors may be redirected.
        path: path of the log file; None before the first :func:`run_log`.
        log: the open log file.
    """

    enabled: bool = False
    path: Path | None = None
    log: TextIO | None = None


_state = _State()


def enable() -> None:
    """Allow :func:`run_log` to redirect the descriptors of this process; without it, commands print as libraries do."""
    _state.enabled = True


class _TerminalWarnings(logging.Handler):
    """Show warnings of our own packages to the user."""

    def emit(self, record: logging.LogRecord) -> None:
        report(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def run_log(command: str) -> Iterator[TextIO]:
    """Write the output of libraries to ``.omnimri/logs/<command>-<time>-<process>.log``, and show progress on the terminal.

    Yields:
        The user's standard output, for results that are printed while the work goes on.
    """
    if not _state.enabled:
        yield sys.stdout
        return
    _state.path = Home.open().logs / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    _state.path.parent.mkdir(parents=True, exist_ok=True)
    output, terminal = _duplicate(sys.stdout), _duplicate(sys.stderr)
    log = _state.log = _state.path.open("a", buffering=1)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log.fileno(), stream.fileno())
    sys.stdout = sys.stderr = log
    warnings = _TerminalWarnings(logging.WARNING)
    try:
        with show_on(terminal):
            for package in OURS:
                logging.getLogger(package).addHandler(warnings)
            yield output
    finally:
        for package in OURS:
            logging.getLogger(package).removeHandler(warnings)
        sys.stdout, sys.stderr = output, terminal


def _duplicate(stream: TextIO) -> TextIO:
    """Return a new stream to the same file or terminal."""
    stream.flush()
    return os.fdopen(os.dup(stream.fileno()), "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


def finish() -> None:
    """Print the path of the log file, if there is one, and send everything that follows to it."""
    if _state.path is None or _state.log is None:
        return
    from flows.cli.output import relative

    print(f"log: {relative(_state.path)}", file=sys.stderr)
    sys.stdout.flush()
    sys.stdout = sys.stderr = _state.log
