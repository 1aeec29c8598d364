"""From de-identified files to the three training sets: volume store, tables, splits."""

from components.curation.curate_corpus import curate

__all__ = ["curate"]
