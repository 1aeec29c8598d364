"""Apply a function to many items, in worker processes if the work is long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from typing import Any

from components.progress import track

START_AFTER_S = 3.0
"""Work that takes no longer is done in the calling process: a worker spends about as long on importing libraries."""


class WorkerPool:
    """Maps functions over items; starts processes once a call has taken :data:`START_AFTER_S`, and keeps them for later calls."""

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
        started, done = time.monotonic(), 0
        if self._initializer is not None:
            self._initializer()
        while self._pool is None and done < len(items) and not self._is_worth_it(started, len(items) - done):
            yield function(items[done])
            done += 1
        if done < len(items):
            yield from self._processes().map(function, items[done:], chunksize=self._chunk)

    def _is_worth_it(self, started: float, left: int) -> bool:
        return self._workers > 1 and self._workers * self._chunk <= left and time.monotonic() - started >= START_AFTER_S

    def _processes(self) -> ProcessPoolExecutor:
        """Return the processes, started by spawn: the calling one may hold threads and locks of other libraries."""
        if self._pool is None:
            pool = ProcessPoolExecutor(self._workers, mp_context=get_context("spawn"), initializer=self._initializer)
            self._pool = self._stack.enter_context(pool)
        return self._pool
