"""Ingestion as a flow: versions of the data."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from components.versioning import DataRepository
from flows import ingest


def test_a_new_clone_lacks_the_version_that_its_pin_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / ".omnimri"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "one").mkdir(parents=True)
    (tmp_path / "data" / "one" / "file").write_text("written on another machine")
    elsewhere = DataRepository(tmp_path, tmp_path / "data").snapshot()
    for folder in (".dvc", ".omnimri"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "data" / "one" / "file").write_text("written on this one")
    with disable_run_logger():
        here = ingest.version_data.fn()
    assert here.changed and here.digest != elsewhere.digest
    assert DataRepository(tmp_path, tmp_path / "data").has_version(here.digest)
    assert not DataRepository(tmp_path, tmp_path / "data").has_version(elsewhere.digest)
