"""Apply a function to many items, in worker processes if the work is long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

from components.progress import track

MEASURED_S = 1.0
"""Seconds in the calling process after which the rest of a call is estimated."""
IMPORTS_S = 8.0
"""Seconds that a worker spends on importing libraries before its first item: processes must save more than that."""


class WorkerPool:
    """Maps functions over items; starts processes where the rest of a call is long enough, and keeps them for later calls."""

    def __init__(self, workers: int, stack: ExitStack, chunk: int, initializer: Callable[[], None] | None = None) -> None:
        """Create a pool.

        Args:
            workers: number of processes; 1 works in the calling process.
            stack: shuts the processes down.
            chunk: items that a process gets at once.
            initializer: prepares each process, including the calling one.
        """
        self._workers, self._stack, self._chunk, self._initializer = workers, stack, chunk, initializer
        self._pool: ProcessPoolExecutor | None = None

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any], description: str) -> Iterator[Any]:
        """Apply a function to items; results in order."""
        yield from track(self._results(function, items), description, total=len(items))

    def _results(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        if self._initializer is not None:
            self._initializer()
        seconds: list[float] = []
        while self._pool is None and len(seconds) < len(items) and not self._is_worth_it(seconds, len(items) - len(seconds)):
            started = time.monotonic()
            result = function(items[len(seconds)])
            seconds.append(time.monotonic() - started)
            yield result
        if len(seconds) < len(items):
            yield from self._processes().map(function, items[len(seconds) :], chunksize=self._chunk)

    def _is_worth_it(self, seconds: Sequence[float], left: int) -> bool:
        """Return whether processes would save more time than their start costs.

        Args:
            seconds: of each item that the calling process has done. The longest one does not count: the first item often imports.
            left: number of the other items.
        """
        usual = sum(seconds) - max(seconds, default=0.0)
        if self._workers == 1 or self._workers * self._chunk > left or usual < MEASURED_S:
            return False
        return usual / max(len(seconds) - 1, 1) * left * (1 - 1 / self._workers) > IMPORTS_S

    def _processes(self) -> ProcessPoolExecutor:
        """Return the processes, started by spawn: the calling one may hold threads and locks of other libraries."""
        if self._pool is None:
            pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"), initializer=self._initializer)
            self._pool = self._stack.enter_context(pool)
        return self._pool
