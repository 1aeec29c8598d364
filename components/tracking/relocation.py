"""Relocation of MLflow's local store: it keeps absolute paths of its artifacts, so a moved or copied home must rewrite them.

Without this, the store of a moved home would find no model and create the old folder again, and that of a copied home would write
into the original.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote

from components.errors import BadInput, JobFailed
from components.home import Home
from components.locks import claim

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Columns of MLflow's store that contain absolute paths or file URIs."""
_ARTIFACTS = re.compile(r"(?P<root>.*/mlflow/artifacts)(/.*)?")


def has_store(tracking_uri: str) -> bool:
    """Return whether a tracking store exists; to look something up in this home's own store must not create it."""
    home = Home.open()
    return tracking_uri != home.local_store or (home.mlflow / "mlflow.db").exists()


def former_roots(home: Home) -> list[str]:
    """Return the folders of artifacts that the store names although they are not this home's, as the store writes them."""
    database, root = home.mlflow / "mlflow.db", home.mlflow / "artifacts"
    if not database.exists():
        return []
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            locations = [row[0] or "" for row in connection.execute("SELECT DISTINCT artifact_location FROM experiments")]
    except sqlite3.Error:  # not a store yet, or one that MLflow itself will complain about
        return []
    named = {match["root"] for location in locations if (match := _ARTIFACTS.fullmatch(location))}
    return sorted(name for name in named if _path(name).resolve() != root.resolve() and not _is_elsewhere(_path(name), root))


def _is_elsewhere(named: Path, root: Path) -> bool:
    """Return whether artifacts were placed outside of the home on purpose: they are where the store says, and none are here.

    Beside a store, they belong to that store's home, from which this one was copied, perhaps before it had any artifacts.
    """
    return named.is_dir() and not root.is_dir() and not (named.parent / "mlflow.db").exists()


def _path(location: str) -> Path:
    return Path(unquote(location.removeprefix("file://"))) if location.startswith("file://") else Path(location)


def relocate(home: Home) -> int:
    """Rewrite the artifact locations of a moved store, in one transaction; return their number.

    Raises:
        JobFailed: the store cannot be written.
    """
    root, changed = home.mlflow / "artifacts", 0
    with claim(home.locks / "relocate"):
        former = former_roots(home)
        if not former:
            return 0
        try:
            with closing(sqlite3.connect(home.mlflow / "mlflow.db", timeout=20)) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                for table, column in LOCATIONS:
                    for name in former if table in tables else ():
                        new = root.as_uri() if name.startswith("file://") else str(root)
                        below = f"{column} = ? OR substr({column}, 1, ?) = ?"
                        update = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {below}"  # noqa: S608
                        values = (new, len(name) + 1, name, len(name) + 1, f"{name}/")
                        changed += connection.execute(update, values).rowcount
        except sqlite3.Error as error:
            raise JobFailed(
                f"the moved store of MLflow cannot be rewritten ({error})",
                where=str(home.mlflow / "mlflow.db"),
                remedy="stop its servers and check its permissions, then omnimri doctor --relocate",
            ) from None
    return changed


def require_own_artifacts(tracking_uri: str, home: Home) -> list[str]:
    """Check that the experiments of a database outside of the home keep their artifacts in this home.

    Returns:
        Folders of others that are used: of another installation with the same database, or of the original of a copy.

    Raises:
        BadInput: the home was moved: MLflow would create the old folders again.
    """
    import mlflow

    root, experiments = home.mlflow / "artifacts", mlflow.MlflowClient(tracking_uri).search_experiments()
    named = {_path(match["root"]) for found in experiments if (match := _ARTIFACTS.fullmatch(found.artifact_location or ""))}
    local = sorted(path for path in named if path.is_absolute() and path.resolve() != root.resolve())
    for path in local:
        if not path.is_dir():
            remedy = f"move it back, or link the old place to the new one: mkdir -p '{path.parent}' && ln -s '{root}' '{path}'"
            fault = f"the database of MLflow names artifacts in {path}, which do not exist"
            raise BadInput(fault, where=str(home.root), remedy=remedy)
    return [str(path) for path in local]


def relocate_if_moved(tracking_uri: str) -> None:
    """Relocate this home's store if the home was moved or copied, and say so; other stores stay as they are."""
    home = Home.open()
    if tracking_uri != home.local_store or not (former := former_roots(home)):
        return
    relocate(home)
    places = ", ".join(str(_path(name).parent.parent) for name in former)
    print(f"this home was moved or copied from {places}: MLflow's store names {home.root} now", file=sys.stderr)
