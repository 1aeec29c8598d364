"""Curate de-identified files into the three training sets: volume store, tables and splits."""

from components.curation.curate_corpus import curate, is_current
from components.curation.inputs import CurationInputs, curation_inputs

__all__ = ["CurationInputs", "curate", "curation_inputs", "is_current"]
