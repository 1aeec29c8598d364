"""What ``omnimri history``, ``rollback`` and ``lineage`` say to people and to programs."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from components.errors import BadInput, GateRefused
from components.registry.audit_log import Action, Move, State
from components.registry.registration import audit_log_of
from flows.cli.registry import app


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions, of which the second replaced the first in production."""
    database = tmp_path / "mlflow.db"
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    history, client = audit_log_of(uri, "omnimri"), MlflowClient(uri)
    history._run()
    for number in ("1", "2"):
        client.create_model_version("omnimri", source=str(tmp_path))
        act = Action("promote", number, "production", reason="a release", figures=(("report/BLEU", 0.5, None),))
        move = Move("production", "1" if number == "2" else "", number)
        history.write(partial(_this, replace(act, moves=(move,))))
    return database


def _this(act: Action, state: State) -> Action:
    """Whatever the state."""
    return act


def said(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def test_the_history_is_told_whole_and_tampering_ends_with_an_error(store: Path) -> None:
    told = json.loads(said("history", "--json"))
    assert [entry["act"]["version"] for entry in told["entries"]] == ["1", "2"] and not told["faults"]
    shown = said("history", "--figures")
    assert "promote 2" in shown and "a release" in shown and "2 entries, the last" in shown
    with sqlite3.connect(store) as database:
        database.execute("UPDATE params SET value = replace(value, 'a release', 'no reason') WHERE key = '000001'")
    with pytest.raises(GateRefused, match="entry 1 was changed"):
        said("history")


def test_a_rollback_wants_the_weights_of_then_and_a_question_is_one_question(store: Path) -> None:
    with pytest.raises(GateRefused, match="weights"):
        said("rollback", "--reason", "a test")
    with pytest.raises(BadInput, match="needs a reason"):
        said("rollback", "--reason", " ")
    for words in ([], ["1", "--dataset", "icbm152-2009"]):
        with pytest.raises(BadInput, match="one question"):
            said("lineage", *words)
