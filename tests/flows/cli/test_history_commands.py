"""``omnimri history``, ``rollback`` and ``lineage``: messages and JSON."""

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
from components.registry.audit_entries import Action, AuditState, Move
from components.registry.registration import audit_log_of
from flows.cli.history import app
from flows.cli.models import app as models
from flows.cli.preflight import check_code
from tests.helpers.mlflow_store import create_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions, of which the second replaced the first in production."""
    database = create_store(tmp_path / "mlflow.db")
    uri = f"sqlite:///{database}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    log, client = audit_log_of(uri, "omnimri"), MlflowClient(uri)
    log._run_id()
    for number in ("1", "2"):
        client.create_model_version("omnimri", source=str(tmp_path))
        action = Action("promote", number, "production", reason="a release", figures=(("report/BLEU", 0.5, None),))
        move = Move("production", "1" if number == "2" else "", number)
        log.write(partial(_in_any_state, replace(action, moves=(move,))))
    return database


def _in_any_state(action: Action, state: AuditState) -> Action:
    return action


def output_of(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def test_the_history_is_complete_and_tampering_is_an_error(store: Path) -> None:
    printed = json.loads(output_of("history", "--json"))
    assert [entry["act"]["version"] for entry in printed["entries"]] == ["1", "2"] and not printed["faults"]
    shown = output_of("history", "--figures")
    assert "promote 2" in shown and "a release" in shown and "2 entries, last hash" in shown
    with sqlite3.connect(store) as database:
        database.execute("UPDATE params SET value = replace(value, 'a release', 'no reason') WHERE key = '000001'")
    with pytest.raises(GateRefused, match="entry 1 was changed"):
        output_of("history")


def test_a_rollback_needs_the_original_weights_and_lineage_one_subject(store: Path) -> None:
    with pytest.raises(GateRefused, match="weights"):
        output_of("rollback", "--reason", "a test")
    with pytest.raises(BadInput, match="needs a reason"):
        output_of("rollback", "--reason", " ")
    for words in ([], ["1", "--dataset", "icbm152-2009"]):
        with pytest.raises(BadInput, match="exactly one"):
            output_of("lineage", *words)


def test_commands_that_look_something_up_create_nothing_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for group, words in ((models, ["list"]), (models, ["show", "1"]), (app, ["history"]), (app, ["lineage", "1"])):
        done = CliRunner().invoke(group, words)
        assert done.exception is None or isinstance(done.exception, BadInput), words
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("commit", ["", "abc"])
def test_a_training_warns_at_its_start_that_its_model_cannot_be_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    monkeypatch.setattr("components.provenance.REPOSITORY", tmp_path)  # an unpacked archive
    monkeypatch.setenv("OMNIMRI_COMMIT", commit)
    lines: list[str] = []
    monkeypatch.setattr("components.progress.report", lines.append)  # a display prints them
    check_code()
    assert any("has no git commit" in line for line in lines) == (not commit)
