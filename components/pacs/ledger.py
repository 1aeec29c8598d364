"""Record of the series that have been fetched or received, so that only what is new is fetched.

It contains pseudonyms, and the UIDs of our own results: who holds it without the key learns no UID of the archive.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from components.home import Home
from components.ingestion.deidentification.pseudonyms import Pseudonyms
from components.ingestion.partial_update import SeriesKey

_TOKEN_BYTES = 6
_SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
    dataset TEXT, series TEXT, recipe TEXT, members BLOB, volumes TEXT, PRIMARY KEY (dataset, series)
);
CREATE TABLE IF NOT EXISTS observed (dataset TEXT PRIMARY KEY, state TEXT);
CREATE TABLE IF NOT EXISTS sent (server TEXT, instance TEXT, PRIMARY KEY (server, instance));
"""


def tokens(pseudonyms: Pseudonyms, instances: Iterable[str]) -> bytes:
    """Return the sorted pseudonyms of instances, six bytes each."""
    return b"".join(sorted(bytes.fromhex(pseudonyms.series(instance)[1 : 1 + 2 * _TOKEN_BYTES]) for instance in instances))


def contains_all(members: bytes, others: bytes) -> bool:
    """Return whether one series has all instances of another (:func:`tokens`)."""

    def split(text: bytes) -> set[bytes]:
        return {text[start : start + _TOKEN_BYTES] for start in range(0, len(text), _TOKEN_BYTES)}

    return split(others) <= split(members)


@dataclass(frozen=True)
class Entry:
    """A series as it was ingested last.

    Attributes:
        recipe: see :func:`components.ingestion.ingest_dataset.output_recipe`.
        members: its instances (:func:`tokens`).
        volumes: series under ``data/`` that its files are in; none if all of them were rejected.
    """

    recipe: str
    members: bytes
    volumes: tuple[SeriesKey, ...]

    @property
    def instances(self) -> int:
        """Number of instances."""
        return len(self.members) // _TOKEN_BYTES


class Ledger:
    """Entries of all datasets, in one SQLite file of the home folder."""

    def __init__(self, home: Home) -> None:
        """Open the file; it is created with its folder, which only this user may read."""
        folder = pacs_folder(home)
        self._path = folder / "ledger.sqlite"
        with closing(self._connect()) as database:
            database.executescript(_SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)

    def entries(self, dataset: str) -> dict[str, Entry]:
        """Return pseudonym of the Series Instance UID -> entry of a dataset."""
        with closing(self._connect()) as database:
            rows = database.execute("SELECT series, recipe, members, volumes FROM series WHERE dataset = ?", (dataset,))
            return {
                series: Entry(recipe, members, tuple((patient, name) for patient, name in json.loads(volumes)))
                for series, recipe, members, volumes in rows
            }

    def record(self, dataset: str, entries: Mapping[str, Entry]) -> None:
        """Replace the entries of series."""
        rows = [(dataset, name, entry.recipe, entry.members, json.dumps(entry.volumes)) for name, entry in entries.items()]
        with closing(self._connect()) as database, database:
            database.executemany("INSERT OR REPLACE INTO series VALUES (?, ?, ?, ?, ?)", rows)

    def observed(self, dataset: str) -> str:
        """Return the state of the archive that the last complete transfer brought ``data/`` up to; "" before the first."""
        with closing(self._connect()) as database:
            row = database.execute("SELECT state FROM observed WHERE dataset = ?", (dataset,)).fetchone()
            return str(row[0]) if row else ""

    def observe(self, dataset: str, state: str) -> None:
        """Record the state of the archive."""
        with closing(self._connect()) as database, database:
            database.execute("INSERT OR REPLACE INTO observed VALUES (?, ?)", (dataset, state))

    def sent_to(self, server: str) -> frozenset[str]:
        """Return the SOP Instance UIDs of our results that were sent to a server."""
        with closing(self._connect()) as database:
            return frozenset(row[0] for row in database.execute("SELECT instance FROM sent WHERE server = ?", (server,)))

    def record_sent(self, server: str, instances: Iterable[str]) -> None:
        """Record results that a server has stored."""
        with closing(self._connect()) as database, database:
            database.executemany("INSERT OR REPLACE INTO sent VALUES (?, ?)", [(server, instance) for instance in instances])


def pacs_folder(home: Home) -> Path:
    """Return the folder of this state, which only this user may enter."""
    folder = home.root / "pacs"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def is_current(entry: Entry | None, recipe: str, present: Collection[SeriesKey], withdrawn: Collection[str]) -> bool:
    """Return whether the volumes of a series are under ``data/`` as this recipe writes them, or belong to a withdrawn patient."""
    if entry is None or entry.recipe != recipe:
        return False
    return all(volume in present or volume[0] in withdrawn for volume in entry.volumes)
