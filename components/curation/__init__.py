"""Curate de-identified files into the three training sets: volume store, tables and splits."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.curation.curate_corpus import curate, is_current
    from components.curation.inputs import CurationInputs, curation_inputs

_MODULES = {"CurationInputs": "inputs", "curate": "curate_corpus", "curation_inputs": "inputs", "is_current": "curate_corpus"}
__all__ = ["CurationInputs", "curate", "curation_inputs", "is_current"]


def __getattr__(name: str) -> Any:
    """Import a name at its first use: a prediction needs modules of this package, and none of the libraries that write tables."""
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"components.curation.{_MODULES[name]}"), name)
