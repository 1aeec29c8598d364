"""One progress display: a rich bar on a terminal, a plain line now and then elsewhere, always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
PLAIN_LINE_EVERY_S = 15.0


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield ``items`` while showing how far they are."""
    total = total if total is not None else len(items) if hasattr(items, "__len__") else None  # type: ignore[arg-type]
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=description, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > PLAIN_LINE_EVERY_S:
            last = time.monotonic()
            print(f"{description}: {count}/{total if total is not None else '?'}", file=sys.stderr, flush=True)
