from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.home import Home
from tests.helpers.orthanc import MISSING, Orthanc, running_orthanc


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    if MISSING is not None:
        pytest.skip(MISSING)
    with running_orthanc(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "data")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.pacs.fetching.FIRST_WAIT_S", 0.02)
