"""The folders of an installation follow the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.home import Home

VARIABLES = ("OMNIMRI_HOME", "OMNIMRI_DATA", "OMNIMRI_CARDS")


def test_an_empty_variable_means_the_default_and_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    default = Home.open()
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")
    assert Home.open() == default and Home.open().cards == default.cards


def test_a_relative_path_counts_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIMRI_HOME", "here")
    assert Home.open().root == tmp_path / "here"
