"""The watcher: observe the sources of data, wait until a change has settled, and announce it as a Prefect event.

Announced states are stored in ``watched.json``: a change that happens while no watcher runs is found at the next start, and a
failed announcement is repeated. A watcher that is killed may announce a change twice; the second run then finds everything done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from components.files import read_state, write_json
from components.home import Home
from components.provenance import digest
from components.settings import Settings
from components.versioning.source_state import SourceState

UPDATED = "omnimri.dataset.updated"
STATE_FILE = "watched.json"
EVERY_S, QUIET_S = 30.0, 20.0


@dataclass
class Watcher:
    """Finds settled changes.

    Attributes:
        path: file of the announced states.
        quiet_s: time without a further change after which a change has settled, seconds.
        announced: key -> state that was announced, or present at the first observation.
        unsettled: key -> state that is not announced yet, and the time of its first observation.
    """

    path: Path
    quiet_s: float = QUIET_S
    announced: dict[str, str] = field(default_factory=dict)
    unsettled: dict[str, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def open(cls, home: Home, quiet_s: float = QUIET_S) -> Watcher:
        """Return a watcher with the states that have been announced before."""
        path = home.root / STATE_FILE
        return cls(path, quiet_s, read_state(path))

    def settled_changes(self, observed: Iterable[SourceState], now: float) -> list[SourceState]:
        """Return the sources that differ from their announced state and have settled. A new source counts as announced.

        Args:
            observed: the sources as they are now.
            now: time on a monotonic clock, seconds.
        """
        ready = []
        first: dict[str, str] = {}
        for source in observed:
            key = f"{source.kind} {source.name}"
            if key not in self.announced:
                first[key] = source.state
            elif source.state == self.announced[key]:
                self.unsettled.pop(key, None)
            elif key not in self.unsettled or self.unsettled[key][0] != source.state:
                self.unsettled[key] = (source.state, now)
            elif now - self.unsettled[key][1] >= self.quiet_s:
                ready.append(source)
        if first:
            self._save(first)
        return ready

    def mark_announced(self, source: SourceState) -> None:
        """Record that a change has been announced."""
        key = f"{source.kind} {source.name}"
        self.unsettled.pop(key, None)
        self._save({key: source.state})

    def _save(self, states: dict[str, str]) -> None:
        self.announced.update(states)
        write_json(self.path, self.announced)


async def _emit(source: SourceState) -> None:
    from prefect.events import Event, Resource
    from prefect.events.clients import get_events_client

    name, short = f"{source.kind} {source.name}", digest(source.kind, source.name)[:16]
    resource = Resource({"prefect.resource.id": f"omnimri.dataset.{short}", "prefect.resource.name": name})
    payload = {"kind": source.kind, "name": source.name, "revision": source.revision}
    async with get_events_client(reconnection_attempts=0, checkpoint_every=1) as client:
        await client.emit(Event(event=UPDATED, resource=resource, payload=payload))


def announce(source: SourceState) -> None:
    """Send the event, and wait until the server has received it."""
    asyncio.run(_emit(source))


def watch(
    settings: Callable[[], Settings],
    home: Home,
    every_s: float,
    quiet_s: float,
    log: Callable[[str], object],
    observe: Callable[[Settings], list[SourceState]],
) -> None:
    """Observe the sources and announce settled changes, forever.

    Args:
        settings: loads the settings before every observation, so that an edit of the profile takes effect.
        home: whose sources are observed.
        every_s: time between two observations, seconds.
        quiet_s: time without a further change after which a change has settled, seconds.
        log: receives messages.
        observe: returns the sources as they are now.
    """
    watcher = Watcher.open(home, quiet_s)
    while True:
        for source in watcher.settled_changes(observe(settings()), time.monotonic()):
            try:
                announce(source)
            except Exception as error:  # the server does not answer: the next observation finds the change again
                log(f"{source.kind} {source.name} has changed, but the announcement failed ({type(error).__name__}); trying again")
                continue
            watcher.mark_announced(source)
            log(f"{source.kind} {source.name} has changed: announced as {UPDATED}")
        time.sleep(min(every_s, quiet_s) if watcher.unsettled else every_s)
