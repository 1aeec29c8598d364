"""Versions of ``data/`` by DVC, pinned by ``data.dvc`` beside it."""

from components.versioning.repository import DataRepository, DataStatus, DataVersion

__all__ = ["DataRepository", "DataStatus", "DataVersion"]
