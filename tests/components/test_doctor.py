"""The doctor's findings name what is wrong with an installation and how to fix it."""

import importlib.metadata
from pathlib import Path

import pytest

from components import doctor
from components.home import Home
from components.versioning import DataRepository


def test_another_package_with_our_import_name_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's ``kernels`` shadows ours, or is shadowed by it, depending on which was installed last."""
    owners = {"kernels": ["omnimri", "kernels"], "flows": ["omnimri"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    finding = doctor._import_names()
    assert finding.state == "fault" and "pip uninstall kernels" in finding.remedy


def test_our_own_import_names_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"kernels": ["omnimri"], "torch": ["torch"]})
    assert doctor._import_names().state == "ok"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An installation whose data folder has a name of its own, in no git repository, with a pinned version."""
    home = Home(tmp_path / "home", tmp_path / "my.images")
    home.data.mkdir()
    (home.data / "one").write_text("one")
    DataRepository(tmp_path, home.data).snapshot()
    return home


def test_the_pin_is_compared_with_the_folder(home: Home) -> None:
    assert doctor._data_version(home) == doctor.Finding("data", "ok", "my.images/ matches my.images.dvc")
    (home.data / "two").write_text("two")
    assert doctor._data_version(home).detail == "my.images/ differs from my.images.dvc"


@pytest.mark.parametrize("content", ["<<<<<<< ours\nouts:\n>>>>>>> theirs\n", "", "outs: []\n"])
def test_a_damaged_pin_is_a_fault_with_its_remedy(home: Home, content: str) -> None:
    pin = home.data.with_name("my.images.dvc")
    pin.write_text(content)
    finding = doctor._data_version(home)
    assert finding.state == "fault" and str(pin) in finding.detail and "git checkout" in finding.remedy
