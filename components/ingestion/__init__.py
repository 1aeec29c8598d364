"""Ingestion: source files of any registered format -> de-identified files under ``data/`` -> volumes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.ingestion.ingest_dataset import ingest
    from components.ingestion.volume_reader import list_series, read_path, read_quarantine, read_volume

_MODULES = {
    "ingest": "ingest_dataset",
    "list_series": "volume_reader",
    "read_path": "volume_reader",
    "read_quarantine": "volume_reader",
    "read_volume": "volume_reader",
}
__all__ = ["ingest", "list_series", "read_path", "read_quarantine", "read_volume"]


def __getattr__(name: str) -> Any:
    """Import a function at its first use: the imaging libraries take a second, and most commands read no image."""
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"components.ingestion.{_MODULES[name]}"), name)
