"""Worker processes for work that is too short for them."""

from __future__ import annotations

import pytest


def start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every pool start its processes before the first item."""
    monkeypatch.setattr("components.worker_pool.MEASURED_S", 0.0)
    monkeypatch.setattr("components.worker_pool.IMPORTS_S", -1.0)
