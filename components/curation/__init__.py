"""From de-identified files to the three training sets: volume store, tables, splits."""

from components.curation.incremental import curate

__all__ = ["curate"]
