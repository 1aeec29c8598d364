"""Registered versions in this home's own MLflow store, looked up without MLflow, whose import takes seconds.

Only what MLflow would answer without a doubt is answered here: a version by number or alias whose artifacts lie in a local folder.
In every other case (another store, other columns, a stage, a lost folder) MLflow is asked, and words the error.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from components.home import Home

_BY_ALIAS = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
_ALIASES = "SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ?"
_LOCATION = "SELECT storage_location FROM model_versions WHERE name = ? AND version = ? AND current_stage != 'Deleted_Internal'"
_TAG = "SELECT value FROM model_version_tags WHERE name = ? AND version = ? AND key = ?"
_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<number>[1-9][0-9]*))")


@dataclass(frozen=True)
class LocalVersion:
    """A registered version: its name and number, the folder of its artifacts, and one of its tags ("" if it lacks it)."""

    name: str
    number: str
    folder: Path
    tag: str


def find_local_version(uri: str, tag: str, tracking_uri: str, home: Home) -> LocalVersion | None:
    """Return the version that ``models:/NAME/NUMBER`` or ``models:/NAME@ALIAS`` names; None where only MLflow can tell.

    Args:
        tag: key of the tag that is returned.
    """
    parsed, database = _URI.fullmatch(uri), home.mlflow / "mlflow.db"
    if parsed is None or tracking_uri != home.local_store:
        return None
    name = parsed["name"]
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
            row = (parsed["number"],) if parsed["number"] else store.execute(_BY_ALIAS, (name, parsed["alias"])).fetchone()
            if row is None:
                return None
            number = str(row[0])
            locations = store.execute(_LOCATION, (name, number)).fetchall()
            tags = store.execute(_TAG, (name, number, tag)).fetchall()
    except sqlite3.Error:
        return None
    folder = _local_folder(locations[0][0] or "") if len(locations) == 1 else None
    return None if folder is None else LocalVersion(name, number, folder, str(tags[0][0]) if tags else "")


def find_local_aliases(name: str, number: str, home: Home) -> tuple[str, ...]:
    """Return the aliases of a version in the home's own store, sorted; none if it, its local folder or the store is missing."""
    database = home.mlflow / "mlflow.db"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as store:
            location = store.execute(_LOCATION, (name, number)).fetchone()
            if location is None or _local_folder(location[0] or "") is None:
                return ()
            return tuple(sorted(str(row[0]) for row in store.execute(_ALIASES, (name, number))))
    except sqlite3.Error:
        return ()


def _local_folder(location: str) -> Path | None:
    """Return the folder that a location names; None unless it exists here."""
    parts = urlsplit(location)
    folder = Path(unquote(parts.path) if parts.scheme == "file" else location)
    return folder if parts.scheme in ("", "file") and folder.is_absolute() and folder.is_dir() else None
