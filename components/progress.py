"""Progress of a command on the user's terminal: live bars while steps run, and one line for each finished step.

A command activates a :class:`Display` with :func:`show_on`. On a terminal the display is live; elsewhere it prints only the line at
the end of each step. Without a display (in worker processes, or where components are used as a library), :func:`track` prints a
plain line to standard error every 15 s, and steps print nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.progress import TaskID

Item = TypeVar("Item")
PLAIN_LINE_EVERY_S = 15.0
NAME_WIDTH = 28
BAR_WIDTH = 24


@dataclass
class Step:
    """A running step.

    Attributes:
        result: the summary that the line at its end shows.
    """

    name: str
    result: str = ""


class Display:
    """Progress of one command on one stream.

    Args:
        stream: the user's terminal, or the file or pipe that stands in for it.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self.console = Console(file=stream, highlight=False, soft_wrap=True)
        self.live = stream.isatty()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(BAR_WIDTH),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.live, redirect_stdout=False, redirect_stderr=False
        )
        self._running: list[tuple[str, TaskID]] = []

    def print(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, markup=False)

    def show_status(self, text: str) -> None:
        """Show beside the running step what it does now."""
        if self._running:
            name, bar = self._running[-1]
            self._progress.update(bar, description=f"{name}: {text}")

    def track(self, items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
        """Yield items, and show how many of them are done as a bar."""
        bar = self._progress.add_task(description, total=total, count="")
        try:
            for count, item in enumerate(items, start=1):
                yield item
                self._progress.update(bar, completed=count, count=f"{count}/{total if total is not None else '?'}")
        finally:
            self._progress.remove_task(bar)

    @contextmanager
    def step(self, step: Step) -> Iterator[None]:
        """Show a step while it runs, and print its line at its end."""
        started = time.monotonic()
        outcome = "failed"
        bar = self._progress.add_task(step.name, total=None, count="")
        self._running.append((step.name, bar))
        try:
            yield
            outcome = step.result or "done"
        finally:
            self._running.pop()
            self._progress.remove_task(bar)
            self.print(f"{step.name:<{NAME_WIDTH}} {outcome} ({time.monotonic() - started:.1f} s)")

    def hide(self) -> None:
        """Remove the live bars for good."""
        self._progress.stop()

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()


_display: Display | None = None


@contextmanager
def show_on(stream: TextIO) -> Iterator[Display]:
    """Show the progress of this process on a stream while the context is open."""
    global _display
    with Display(stream) as _display:
        try:
            yield _display
        finally:
            _display = None


@contextmanager
def step(name: str) -> Iterator[Step]:
    """Report a step: set ``result`` of the yielded object to the summary that the user is to see."""
    running = Step(name)
    if _display is None:
        yield running
        return
    with _display.step(running):
        yield running


def report(line: str) -> None:
    """Print a line on the display; without one, do nothing."""
    if _display is not None:
        _display.print(line)


def hide_bars() -> None:
    """Remove the live bars for good, before a command streams its results to the same terminal."""
    if _display is not None:
        _display.hide()


def show_status(text: str) -> None:
    """Show what the running step does now: beside it on a live display, else as a line on standard error."""
    if _display is not None:
        _display.show_status(text)
    if _display is None or not _display.live:
        print(text, file=sys.stderr, flush=True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield items, and show how many of them are done."""
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    if _display is None or not _display.live:
        yield from _track_in_lines(items, description, total)
    else:
        yield from _display.track(items, description, total)


def _track_in_lines(items: Iterable[Item], description: str, total: int | None) -> Iterator[Item]:
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            print(f"{description}: {count}/{total if total is not None else '?'}", file=sys.stderr, flush=True)
