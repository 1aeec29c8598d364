"""Folders in which runs keep their state: ``OMNIMRI_HOME``, else ``.omnimri/`` in the checkout, else the user's data folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from components.assets import in_checkout
from components.provenance import REPOSITORY


@dataclass(frozen=True)
class Home:
    """Folders of one installation. None of them is created until a step writes to it.

    Attributes:
        root: state of runs (git-ignored).
        data: de-identified source files, versioned by ``data.dvc`` (in the checkout, beside it).
    """

    root: Path
    data: Path

    @classmethod
    def open(cls) -> Home:
        """Return the home that the environment names (``OMNIMRI_HOME``, ``OMNIMRI_DATA``), else the default one.

        The default is the checkout, or, where OmniMRI is installed from a wheel, the user's data folder (on Linux
        ``~/.local/share/omnimri``). An empty variable counts as none: as a path it would be the current directory.
        """
        if in_checkout():
            default_root, default_data = REPOSITORY / ".omnimri", REPOSITORY / "data"
        else:
            user_folder = platformdirs.user_data_path("omnimri", appauthor=False)
            default_root, default_data = user_folder / ".omnimri", user_folder / "data"
        root = Path(os.environ.get("OMNIMRI_HOME") or default_root).expanduser().resolve()
        data = Path(os.environ.get("OMNIMRI_DATA") or default_data).expanduser().resolve()
        return cls(root=root, data=data)

    @property
    def cards(self) -> Path:
        """The user's own dataset cards; ``OMNIMRI_CARDS`` names another folder."""
        return Path(os.environ.get("OMNIMRI_CARDS") or self.root / "cards").expanduser().resolve()

    @property
    def sources(self) -> Path:
        """Source folders of the sample datasets, built as a download would leave them, before ingestion."""
        return self.root / "sources"

    @property
    def curated(self) -> Path:
        """The curated corpus: Parquet tables and the volume store."""
        return self.root / "curated"

    @property
    def validation(self) -> Path:
        """The Great Expectations project and its Data Docs."""
        return self.root / "gx"

    @property
    def training(self) -> Path:
        """One folder for each trained stage, named by its digest."""
        return self.root / "training"

    @property
    def evaluations(self) -> Path:
        """One folder for each evaluation, named by its digest."""
        return self.root / "evaluations"

    @property
    def finished_runs(self) -> Path:
        """Reports of finished runs of the pipeline (:mod:`flows.pipeline_report`)."""
        return self.root / "steps" / "pipeline"

    @property
    def downloads(self) -> Path:
        """Registered versions that were read from a store on another machine, one folder each."""
        return self.root / "downloads"

    @property
    def mlflow(self) -> Path:
        """MLflow's SQLite store and artifacts."""
        return self.root / "mlflow"

    @property
    def prefect(self) -> Path:
        """Prefect's home."""
        return self.root / "prefect"

    @property
    def locks(self) -> Path:
        """Lock files, which processes hold while they write (:mod:`components.locks`)."""
        return self.root / "locks"

    @property
    def logs(self) -> Path:
        """Log files of commands and services."""
        return self.root / "logs"

    @property
    def tracking_uri(self) -> str:
        """``MLFLOW_TRACKING_URI`` where it is set, else :attr:`local_store`."""
        return os.environ.get("MLFLOW_TRACKING_URI") or self.local_store

    @property
    def local_store(self) -> str:
        """Address of MLflow's SQLite store under :attr:`mlflow`."""
        return sqlite_address(self.mlflow / "mlflow.db", "pysqlite")

    def artifact_location(self, tracking_uri: str) -> str | None:
        """Return where a new experiment keeps its artifacts: in this home for its own store; None (its server decides) for others.

        MLflow's own default for a local store is a folder of the current directory.
        """
        return (self.mlflow / "artifacts").as_uri() if tracking_uri == self.local_store else None


def sqlite_address(path: Path, driver: str) -> str:
    """Return SQLAlchemy's address of a SQLite file.

    SQLAlchemy splits an address at ``?`` and decodes ``%``, so that a path with these characters must be quoted. With the driver in
    its scheme, MLflow does not create the folder that the quoted path would name.
    """
    if not set("?%") & set(str(path)):
        return f"sqlite:///{path}" if driver == "pysqlite" else f"sqlite+{driver}:///{path}"
    return f"sqlite+{driver}:///{str(path).replace('%', '%25').replace('?', '%3F')}"


if __name__ == "__main__":  # for `make ui`
    print(Home.open().tracking_uri)
