"""The watcher: looks at what tells of updates, waits until a change has settled, and announces it as an event of Prefect's.

What has been announced is kept in ``watched.json``: a change that happens while nobody watches is found at the next start, and an
announcement that fails is made again. It may be made twice (killed in between): the second finds everything done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from components.files import read_json, write_json
from components.home import Home
from components.provenance import digest
from components.settings import Settings
from components.versioning.source_state import Watched, observe

UPDATED = "omnimri.dataset.updated"
KNOWN = "watched.json"
EVERY_S, QUIET_S = 30.0, 20.0


@dataclass
class Watcher:
    """Finds settled changes.

    Attributes:
        quiet_s: a change is announced when nothing has changed for so long.
        known: what has been announced or was there at the first look; key -> state.
        moving: key -> state that is not announced yet, and since when it is like this.
    """

    path: Path
    quiet_s: float = QUIET_S
    known: dict[str, str] = field(default_factory=dict)
    moving: dict[str, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, home: Home, quiet_s: float = QUIET_S) -> Watcher:
        """A watcher that knows what has been announced before."""
        path = home.root / KNOWN
        return cls(path, quiet_s, dict(read_json(path)) if path.exists() else {})

    def settled(self, found: Iterable[Watched], now: float) -> list[Watched]:
        """What has changed since it was announced last, and has stayed as it is since. What is seen first has not changed.

        Args:
            now: seconds, of any clock that only goes forward.
        """
        ready = []
        first: dict[str, str] = {}
        for one in found:
            key = f"{one.kind} {one.name}"
            if key not in self.known:
                first[key] = one.state
            elif one.state == self.known[key]:
                self.moving.pop(key, None)
            elif key not in self.moving or self.moving[key][0] != one.state:
                self.moving[key] = (one.state, now)
            elif now - self.moving[key][1] >= self.quiet_s:
                ready.append(one)
        if first:
            self._know(first)
        return ready

    def announced(self, one: Watched) -> None:
        """Note that a change has been announced."""
        key = f"{one.kind} {one.name}"
        self.moving.pop(key, None)
        self._know({key: one.state})

    def _know(self, states: dict[str, str]) -> None:
        self.known.update(states)
        write_json(self.path, self.known)


async def _emit(one: Watched) -> None:
    from prefect.events import Event, Resource
    from prefect.events.clients import get_events_client

    name, number = f"{one.kind} {one.name}", digest(one.kind, one.name)[:16]
    resource = Resource({"prefect.resource.id": f"omnimri.dataset.{number}", "prefect.resource.name": name})
    payload = {"kind": one.kind, "name": one.name, "revision": one.revision}
    async with get_events_client(reconnection_attempts=0, checkpoint_every=1) as client:
        await client.emit(Event(event=UPDATED, resource=resource, payload=payload))


def announce(one: Watched) -> None:
    """Send the event, and wait until the server has it."""
    asyncio.run(_emit(one))


def watch(
    settings: Callable[[], Settings],
    home: Home,
    every_s: float,
    quiet_s: float,
    say: Callable[[str], object],
    look: Callable[[tuple, Home], list[Watched]] = observe,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Look, and announce what has settled, until asked to stop.

    Args:
        settings: read anew at every look, so that an edited profile counts.
        look: what is looked at.
    """
    watcher = Watcher.open(home, quiet_s)
    while not stop():
        for one in watcher.settled(look(settings().datasets, home), time.monotonic()):
            try:
                announce(one)
            except Exception as error:  # the server is away: the change is still there at the next look
                say(f"{one.kind} {one.name} has changed, but could not be announced ({type(error).__name__}); trying again")
                continue
            watcher.announced(one)
            say(f"{one.kind} {one.name} has changed: announced as {UPDATED}")
        time.sleep(min(every_s, quiet_s) if watcher.moving else every_s)
