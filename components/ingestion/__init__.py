"""Source files of any supported form -> de-identified files under ``data/`` -> :class:`~components.ingestion.volume.Volume`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.ingestion.ingest_dataset import ingest
    from components.ingestion.volume_reader import list_series, quarantined, read_path, read_volume

_HOMES = {
    "ingest": "ingest_dataset",
    "list_series": "volume_reader",
    "quarantined": "volume_reader",
    "read_path": "volume_reader",
    "read_volume": "volume_reader",
}
__all__ = ["ingest", "list_series", "quarantined", "read_path", "read_volume"]


def __getattr__(name: str) -> Any:
    """Load a reader when it is first asked for: highdicom alone takes a second, and most commands read no image."""
    if name not in _HOMES:
        raise AttributeError(name)
    from importlib import import_module

    return getattr(import_module(f"components.ingestion.{_HOMES[name]}"), name)
