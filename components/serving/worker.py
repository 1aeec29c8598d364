"""One computation at a time: a short queue, a time limit, and an end to work that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from components.errors import OmniMRIError
from components.inference.untrusted_input import Limits

Result = TypeVar("Result")


class QueueFull(OmniMRIError):
    """Too many requests wait already (HTTP 429)."""


class TooSlow(OmniMRIError):
    """No answer within the time limit (HTTP 504)."""


class Cancelled(Exception):
    """Nobody waits for the result any longer."""


class Stop:
    """A request to stop, which a computation checks between its steps."""

    def __init__(self) -> None:
        self._event = Event()

    def set(self) -> None:
        """Request the computation to stop."""
        self._event.set()

    def check(self) -> None:
        """Return if the computation may go on.

        Raises:
            Cancelled: it may not.
        """
        if self._event.is_set():
            raise Cancelled


class Worker:
    """A thread that computes one result at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._executor = ThreadPoolExecutor(1, "worker")
        self.waiting = 0

    def require_place(self) -> None:
        """Check that the queue has a place.

        Raises:
            QueueFull: it has none.
        """
        if self.waiting >= self.limits.queue:
            raise QueueFull("too many requests at once", where="queue", remedy="retry later")

    async def run(self, compute: Callable[[Stop], Result]) -> Result:
        """Return the result of a computation. It is stopped if it takes too long, or if the caller is cancelled.

        Raises:
            QueueFull: the queue is full.
            TooSlow: the time limit is exceeded.
        """
        self.require_place()
        self.waiting += 1
        stop = Stop()
        future = asyncio.get_running_loop().run_in_executor(self._executor, self._checked, compute, stop)
        future.add_done_callback(self._release)
        try:
            return await asyncio.wait_for(asyncio.shield(future), self.limits.seconds)
        except TimeoutError:
            remedy = f"{self.limits.seconds:.0f} s are allowed: send a smaller image"
            raise TooSlow("no answer in time", where="model", remedy=remedy) from None
        finally:
            stop.set()

    @staticmethod
    def _checked(compute: Callable[[Stop], Result], stop: Stop) -> Result:
        stop.check()  # nobody may wait any longer when its turn comes
        return compute(stop)

    def _release(self, future: asyncio.Future[Result]) -> None:
        self.waiting -= 1
        if not future.cancelled():
            future.exception()  # of a result that nobody awaits: not an error of the event loop

    def shutdown(self) -> None:
        """End the thread after the current step."""
        self._executor.shutdown(wait=False, cancel_futures=True)
