"""A version is made again from what it says of itself, by a command that a person types; and what cannot be is refused first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from components.errors import BadInput
from components.provenance import file_md5, git_commit
from components.registry.model_version import own_cards
from components.registry.reproduction import _git, _require_same_cards, compare_weights, reproduce, unmet_pins
from tests.helpers.registered import SETTINGS, Store

OMNIMRI = [sys.executable, "-m", "flows.cli"]


def test_weights_are_compared_bitwise(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(3), "c": torch.zeros(2, dtype=torch.bfloat16)}
    nudged = {**tensors, "b": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    save_file(tensors, tmp_path / "ours")
    save_file(nudged, tmp_path / "theirs")
    save_file({"a": tensors["a"]}, tmp_path / "part")
    assert compare_weights(tmp_path / "ours", tmp_path / "ours") == (3, 0, 0.0)
    assert compare_weights(tmp_path / "ours", tmp_path / "theirs") == (3, 1, 2**-23)
    assert compare_weights(tmp_path / "ours", tmp_path / "part") == (3, 2, float("inf"))


def test_unmet_pins_are_listed(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(f"# pins\ntorch=={torch.__version__.partition('+')[0]}\nnumpy==0.0.1\nno-such-package==1\n")
    found = {name: (pinned, installed) for name, pinned, installed in unmet_pins(tmp_path / "lock")}
    assert set(found) == {"numpy", "no-such-package"} and found["no-such-package"] == ("1", "none")


def test_uncommitted_versions_are_refused_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.client.create_registered_model(SETTINGS.name)
    for commit in ("unknown", "abc+dirty"):
        version = store.client.create_model_version(SETTINGS.name, str(store.model), tags={"git_commit": commit}).version
        with pytest.raises(BadInput, match="was not committed"):
            reproduce(str(version), store.home, SETTINGS.name)


def test_without_git_the_remedy_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="git is not installed"):
        _git("clone", "here", "there")


def test_own_cards_are_in_the_lineage_and_must_be_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No commit contains a card of the user's folder."""
    monkeypatch.setenv("OMNIMRI_CARDS", str(tmp_path))
    card = tmp_path / "own.yaml"
    card.write_text("id: own")
    recorded = own_cards(["own", "icbm152-2009"])
    assert recorded == {"own": file_md5(card)}
    _require_same_cards(recorded)
    for change in (lambda: card.write_text("id: own # edited"), card.unlink):
        change()
        with pytest.raises(BadInput, match="own dataset cards are missing or differ"):
            _require_same_cards(recorded)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(git_commit().endswith("+dirty") or git_commit() == "unknown", reason="needs a checkout without changes")
def test_the_same_commit_data_and_settings_give_the_same_bits(tmp_path: Path) -> None:
    """Also in the face of the user's own Prefect and MLflow settings, which the new checkout must not see."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    environment = {**clean, "OMNIMRI_HOME": str(tmp_path / "home"), "OMNIMRI_DATA": str(tmp_path / "data")}

    def omnimri(*words: str) -> Any:
        done = subprocess.run([*OMNIMRI, *words, "--json"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    run = omnimri("run", "--profile", "debug")
    made = omnimri("reproduce", run["model"]["version"], "--profile", "debug")
    print(made)
    assert made["equal"] and made["tensors"] > 50 and made["largest"] == 0
    assert made["git_commit"] == git_commit() and made["data_digest"] == run["data_digest"]
