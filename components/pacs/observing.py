"""Observe archives for the watcher: which datasets have new series there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from components.catalog import DatasetCard, load_card
from components.errors import OmniMRIError
from components.pacs.archive import ServerFault, open_archive
from components.pacs.credentials import CredentialsOf
from components.pacs.source import PacsSource, find_source
from components.pacs.update import listing_state
from components.settings import DatasetSettings, Settings
from components.versioning.source_state import SourceState


@dataclass
class ServerObserver:
    """Asks the archives of the datasets, each at most once in ``pacs.poll_s``.

    A change counts when two answers in a row agree: a study that is just being sent there is not announced in parts.

    Attributes:
        credentials_of: of a server.
        log: receives a message when a server stops answering, and when it answers again.
        now: monotonic clock, seconds.
    """

    credentials_of: CredentialsOf
    log: Callable[[str], object]
    now: Callable[[], float] = time.monotonic
    _asked: dict[str, float] = field(default_factory=dict)
    _states: dict[str, SourceState] = field(default_factory=dict)
    _seen: dict[str, str] = field(default_factory=dict)
    _failing: set[str] = field(default_factory=set)

    def observe(self, settings: Settings) -> list[SourceState]:
        """Return the states of the archives that have answered, as they were at the last answer."""
        for dataset in settings.datasets:
            try:
                card = load_card(dataset.card)
                source = find_source(dataset, card, settings.pacs)
            except OmniMRIError as error:
                self._report(dataset.card, str(error))
                continue
            if source is not None and self.now() - self._asked.get(dataset.card, -settings.pacs.poll_s) >= settings.pacs.poll_s:
                self._asked[dataset.card] = self.now()
                self._ask(dataset, card, source)
        listed = {dataset.card for dataset in settings.datasets}
        return [state for name, state in self._states.items() if name in listed]

    def _ask(self, dataset: DatasetSettings, card: DatasetCard, source: PacsSource) -> None:
        try:
            listing = open_archive(source.server, self.credentials_of).list_series(source.filters)
        except (OmniMRIError, ServerFault) as error:
            self._report(card.id, str(error))
            return
        if card.id in self._failing:
            self._failing.remove(card.id)
            self.log(f"{dataset.card}: the server answers again")
        state = listing_state(listing)
        if card.id not in self._states or self._seen.get(card.id) == state:
            self._states[card.id] = SourceState("server", card.id, state)
        self._seen[card.id] = state

    def _report(self, name: str, fault: str) -> None:
        """Report a fault once."""
        if name not in self._failing:
            self._failing.add(name)
            self.log(f"{name}: its server cannot be observed: {fault}")
