"""A registry knows its names without importing anything, and what plugins add."""

import sys
from pathlib import Path

import pytest

from components.errors import BadInput
from components.registries import PLUGINS, Registry, plugins


def test_names_are_known_before_anything_is_imported() -> None:
    registry: Registry[object] = Registry("task", {"a": "no.such.module:A", "b": "pathlib:Path"})
    assert list(registry) == ["a", "b"] and registry["b"] is Path
    with pytest.raises(ModuleNotFoundError):
        registry["a"]
    with pytest.raises(KeyError):
        registry["c"]


def test_a_name_belongs_to_one_object() -> None:
    registry: Registry[object] = Registry("task", {"a": "pathlib:Path"})
    registry.add("a", "pathlib:Path")
    with pytest.raises(BadInput, match="two tasks are called a"):
        registry.add("a", "pathlib:PurePath")


def test_a_plugin_is_imported_once_and_a_missing_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_plugin.py").write_text("COUNT = []\nCOUNT.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(PLUGINS, "toy_plugin")
    assert plugins() == plugins() == (sys.modules["toy_plugin"],)
    assert plugins()[0].COUNT == [1]
    monkeypatch.setenv(PLUGINS, "toy_plugin, no_such_plugin")
    with pytest.raises(BadInput, match="no_such_plugin"):
        plugins()


def test_a_broken_plugin_is_reported_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(PLUGINS, "broken_plugin")
    with pytest.raises(BadInput, match="broken_plugin"):
        plugins()


def test_a_wrong_location_of_a_plugin_is_reported() -> None:
    registry: Registry[object] = Registry("task", {})
    registry.add("a", "pathlib:NoSuchTask")
    with pytest.raises(BadInput, match="pathlib:NoSuchTask"):
        registry["a"]
