"""Versions of ``data/`` in DVC, pinned by ``data.dvc``."""

from components.versioning.data_version import CheckoutResult, DataStatus, DataVersion, Withdrawal
from components.versioning.repository import DataRepository

__all__ = ["CheckoutResult", "DataRepository", "DataStatus", "DataVersion", "Withdrawal"]
