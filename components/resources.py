"""Peak resident memory of a process and its children."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

SAMPLE_EVERY_S = 0.5


class PeakMemory:
    """Sample the resident memory of this process and its children while the context is open.

    Attributes:
        mib: highest sum sampled so far, MiB. Shared pages count once for each process, so this is an upper bound.
    """

    def __init__(self) -> None:
        self.mib = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process()
        while True:
            total = 0
            for process in [own, *own.children(recursive=True)]:
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # the process ended after it was listed
            self.mib = max(self.mib, total / 2**20)
            if self._stop.wait(SAMPLE_EVERY_S):
                return
