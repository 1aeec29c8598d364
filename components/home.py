"""Where a run keeps its state: ``.omnimri/`` in the checkout, or the folder that ``OMNIMRI_HOME`` names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from components.provenance import REPOSITORY


@dataclass(frozen=True)
class Home:
    """Folders of one installation. Nothing here is created until a step writes to it.

    Attributes:
        root: state of runs (git-ignored).
        data: de-identified source files, versioned by ``data.dvc`` (in the checkout, beside it).
    """

    root: Path
    data: Path

    @classmethod
    def open(cls) -> Home:
        """The home that the environment names (``OMNIMRI_HOME``, ``OMNIMRI_DATA``), or the checkout's own."""
        root = Path(os.environ.get("OMNIMRI_HOME", REPOSITORY / ".omnimri")).expanduser().resolve()
        data = Path(os.environ.get("OMNIMRI_DATA", REPOSITORY / "data")).expanduser().resolve()
        return cls(root=root, data=data)

    @property
    def cards(self) -> Path:
        """The user's own dataset cards; ``OMNIMRI_CARDS`` moves it."""
        return Path(os.environ.get("OMNIMRI_CARDS", self.root / "cards")).expanduser().resolve()

    @property
    def sources(self) -> Path:
        """Source folders that the demo builds (as a download would leave them, before ingestion)."""
        return self.root / "sources"

    @property
    def curated(self) -> Path:
        """Curated corpus: Parquet tables and the volume store."""
        return self.root / "curated"

    @property
    def validation(self) -> Path:
        """Great Expectations project and Data Docs."""
        return self.root / "gx"

    @property
    def training(self) -> Path:
        """One folder per trained stage, named by its digest."""
        return self.root / "training"

    @property
    def evaluations(self) -> Path:
        """One folder per evaluation, named by its digest."""
        return self.root / "evaluations"

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
        """Files that processes hold while they write."""
        return self.root / "locks"

    @property
    def tracking_uri(self) -> str:
        """``MLFLOW_TRACKING_URI`` where set, else the SQLite store under :attr:`mlflow`."""
        return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.mlflow / 'mlflow.db'}"
