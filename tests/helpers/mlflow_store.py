"""A new MLflow store in a moment: its schema is created once in a process, and copied."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from components.home import Home


@cache
def _empty_database() -> Path:
    """Return a database with MLflow's schema, which takes seconds to create; it is removed at the end of the process."""
    from mlflow import MlflowClient

    folder = Path(tempfile.mkdtemp(prefix="omnimri-mlflow-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments(max_results=1)
    return folder / "mlflow.db"


def create_store(database: Path) -> Path:
    """Create an empty store; return its path."""
    database.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_empty_database(), database))


def new_home(root: Path, data: Path | None = None) -> Home:
    """Return an installation whose MLflow store is empty; ``data`` is a folder of its own unless it is given."""
    home = Home(root, data or root / "data")
    create_store(home.mlflow / "mlflow.db")
    return home
