"""The doctor's findings name what is wrong with an installation and how to fix it."""

import importlib.metadata

import pytest

from components import doctor


def test_another_package_with_our_import_name_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's ``kernels`` shadows ours, or is shadowed by it, depending on which was installed last."""
    owners = {"kernels": ["omnimri", "kernels"], "flows": ["omnimri"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    finding = doctor._import_names()
    assert finding.state == "fault" and "pip uninstall kernels" in finding.remedy


def test_our_own_import_names_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"kernels": ["omnimri"], "torch": ["torch"]})
    assert doctor._import_names().state == "ok"
