"""The audit log is append-only: every other change is detected, and concurrent writers lose nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from components.errors import JobFailed
from components.home import Home
from components.provenance import digest
from components.registry import audit_log
from components.registry.audit_entries import (
    EARLIER,
    GENESIS_HASH,
    HEAD,
    Action,
    ActionKind,
    AuditState,
    Entry,
    Move,
    alias_stack,
    alias_versions,
    integrity_faults,
)
from components.registry.audit_log import EXPERIMENT, RUN, AuditLog
from tests.helpers.mlflow_store import create_store


def chain(actions: Sequence[Action]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for number, action in enumerate(actions, start=1):
        entry = Entry(number, "2026-01-01T00:00:00+00:00", "who@where", action, entries[-1].hash if entries else GENESIS_HASH, "")
        entries.append(replace(entry, hash=digest(*entry.content)))
    return tuple(entries)


def move(place: str, before: str, after: str, action: ActionKind = "promote") -> Action:
    return Action(action, after, place, (Move(place, before, after),))


ACTIONS = st.lists(
    st.builds(Action, st.sampled_from(["promote", "refuse"]), st.text(max_size=3), reason=st.text(max_size=5)),
    min_size=1,
    max_size=6,
)


@given(ACTIONS, st.data())
def test_changed_removed_and_truncated_entries_are_detected(actions: list[Action], data: st.DataObject) -> None:
    entries = chain(actions)
    head = f"{len(entries)} {entries[-1].hash}"
    assert not integrity_faults(entries, head)
    index = data.draw(st.integers(0, len(entries) - 1))
    old = entries[index]
    changed = replace(old, act=replace(old.act, reason=old.act.reason + "!"))
    rehashed = replace(changed, hash=digest(*changed.content))
    before, after = entries[:index], entries[index + 1 :]
    for edited in ((*before, changed, *after), (*before, rehashed, *after), (*before, *after), before):
        assert integrity_faults(edited, head)


def test_an_alias_remembers_its_earlier_versions() -> None:
    entries = chain(
        [
            move("production", "", "1"),
            move("production", "1", "2"),
            move("staging", "", "3"),
            move("production", "2", "1", "rollback"),
            move("production", "1", "4"),
        ]
    )
    assert alias_versions(entries) == {"production": "4", "staging": "3"}
    assert alias_stack(entries, "production") == ["1", "4"] and alias_stack(entries[:4], "production") == ["1"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_store(tmp_path_factory.mktemp("store") / "mlflow.db")


@pytest.fixture
def model(database: Path, request: pytest.FixtureRequest) -> tuple[MlflowClient, str]:
    """A registered model of three versions, named after the test."""
    client, name = MlflowClient(f"sqlite:///{database}"), digest(request.node.name)[:12]
    AuditLog(client, name)._run_id()
    for _ in range(3):
        client.create_model_version(name, source=str(database.parent))
    return client, name


def test_the_experiment_of_histories_keeps_its_artifacts_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own default is a folder of the current directory, which a moved home would leave behind."""
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path))
    create_store(tmp_path / "mlflow" / "mlflow.db")
    client = MlflowClient(Home.open().local_store)
    AuditLog(client, "model")._run_id()
    assert client.get_experiment_by_name(EXPERIMENT).artifact_location == (tmp_path / "mlflow" / "artifacts").as_uri()


def promotion(version: str) -> Callable[[AuditState], Action]:
    return lambda state: move("production", state.aliases.get("production", ""), version)


def test_concurrent_writers_lose_nothing(model: tuple[MlflowClient, str]) -> None:
    def write(number: int) -> None:
        AuditLog(*model).write(promotion(str(1 + number % 3)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))
    state = AuditLog(*model).read()
    assert [entry.number for entry in state.entries] == list(range(1, 13)) and not state.faults and not state.moved_outside
    afters = [entry.act.moves[0].after for entry in state.entries]
    assert [entry.act.moves[0].before for entry in state.entries] == ["", *afters[:-1]]
    assert sorted(afters) == sorted(str(1 + number % 3) for number in range(12))


def test_an_abandoned_entry_is_completed_by_the_next_writer(
    model: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AuditLog(*model, crash).write(promotion("1"))
    assert not AuditLog(*model).read().entries[0].done
    monkeypatch.setattr(audit_log, "LEASE_S", 0.0)
    state = AuditLog(*model).write(promotion("2"))
    assert state.aliases["production"] == "2" and all(entry.done for entry in state.entries) and not state.faults


def test_the_clock_of_a_dead_writer_does_not_matter(model: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch) -> None:
    class AheadOfTime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(hours=2)

    def crash() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as clock, pytest.raises(KeyboardInterrupt):
        clock.setattr(audit_log, "datetime", AheadOfTime)
        AuditLog(*model, crash).write(promotion("1"))
    monkeypatch.setattr(audit_log, "LEASE_S", 0.2)
    monkeypatch.setattr(audit_log, "PATIENCE_S", 5.0)
    assert AuditLog(*model).write(promotion("2")).aliases["production"] == "2"


def test_a_deleted_history_is_named_with_the_command_that_restores_it(model: tuple[MlflowClient, str]) -> None:
    log = AuditLog(*model)
    log.write(promotion("1"))
    client, run_id = model[0], log._run_id()
    client.delete_run(run_id)
    with pytest.raises(JobFailed, match=f"mlflow runs restore --run-id {run_id}"):
        log.write(promotion("2"))
    client.restore_run(run_id)
    experiment = client.get_run(run_id).info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(JobFailed, match=f"mlflow experiments restore --experiment-id {experiment}"):
        log.write(promotion("2"))
    client.restore_experiment(experiment)
    assert log.write(promotion("2")).aliases["production"] == "2"


def test_a_renamed_model_is_named(model: tuple[MlflowClient, str]) -> None:
    client, name = model
    AuditLog(client, name).write(promotion("1"))
    client.rename_registered_model(name, f"{name}-renamed")
    with pytest.raises(JobFailed, match=f"renamed to {name}-renamed"):
        AuditLog(client, name).write(promotion("2"))


def test_a_deleted_model_that_is_registered_again_continues_its_history(model: tuple[MlflowClient, str]) -> None:
    client, name = model
    AuditLog(client, name).write(promotion("1"))
    client.delete_registered_model(name)
    AuditLog(client, name).create()
    number = client.create_model_version(name, source="again").version
    state = AuditLog(client, name).write(promotion(str(number)))
    assert [entry.act.action for entry in state.entries] == ["promote", "outside", "promote"]
    assert not state.faults and not state.moved_outside


def test_a_long_entry_is_stored_in_full(model: tuple[MlflowClient, str]) -> None:
    """MLflow truncates parameters at 6,000 characters without an error."""
    gates = tuple(f"gate {number}: " + "worse " * 40 for number in range(60))
    AuditLog(*model).write(lambda state: Action("refuse", "1", "staging", gates=gates))
    state = AuditLog(*model).read()
    assert state.entries[0].act.gates == gates and not state.faults


def write_three(model: tuple[MlflowClient, str]) -> AuditLog:
    for version in ("1", "2", "3"):
        action = replace(move("production", "", version), reason="good reasons")
        AuditLog(*model).write(lambda state, action=action: action)
    return AuditLog(*model)


TAMPERING = {
    "text": ("SET value = replace(value, 'good', 'bad') WHERE key = '000002'", "entry 2 was changed"),
    "no entry": ("SET value = 'hello' WHERE key = '000002'", "entry 2 was changed"),
    "no action": ("SET value = '{\"number\":2}' WHERE key = '000002'", "entry 2 was changed"),
    "number": ("SET value = replace(value, '\"number\":2', '\"number\":[]') WHERE key = '000002'", "entry 2 was changed"),
    "time": ('SET value = replace(value, \'"at":"2\', \'"at":2,"x":"\') WHERE key = \'000002\'', "entry 2 was changed"),
    "first": ("DELETE WHERE key LIKE '000001%'", "entry 1 is missing"),
    "middle": ("DELETE WHERE key LIKE '000002%'", "entry 2 is missing"),
}
"""Changes of the entries, which every later reading finds."""
ERASURES = {
    "last": ("DELETE WHERE key LIKE '000003%'", "1 entries at its end are missing"),
    "all": ("DELETE WHERE 1 = 1", "3 entries at its end are missing"),
}
HEADS = {
    "removed": ("", "removed"),
    "no head": ("abc", "was changed"),
    "no number": ("\u00b2 abc", "was changed"),
    "set back": ("first", "set back"),
    "of another log": (f"3 {'0' * 64}", "not the one recorded"),
}
"""Changes of the evidence itself, which only the next forced promotion may replace."""


def edit_entries(database: Path, change: str, run_id: str) -> None:
    statement = change.replace("DELETE", "DELETE FROM params").replace("SET", "UPDATE params SET")
    with sqlite3.connect(database) as connection:
        assert connection.execute(f"{statement} AND run_uuid = ?", [run_id]).rowcount >= 1


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_with_the_database_is_detected_for_ever(model: tuple[MlflowClient, str], database: Path, kind: str) -> None:
    log, (change, fault) = write_three(model), TAMPERING[kind]
    edit_entries(database, change, log._run_id())
    assert fault in " ".join(log.read().faults)
    state = log.write(lambda state: replace(promotion("2")(state), action="force", gates=tuple(state.faults)))
    assert fault in " ".join(state.faults) and alias_stack(state.entries, "production")


@pytest.mark.parametrize("kind", [*ERASURES, *HEADS])
def test_erased_evidence_is_reported_until_a_forced_promotion_records_it(
    model: tuple[MlflowClient, str], database: Path, kind: str
) -> None:
    log, (change, fault) = write_three(model), (ERASURES | HEADS)[kind]
    if kind in ERASURES:
        edit_entries(database, change, log._run_id())
    elif change:
        first = f"1 {log.read().entries[0].hash}"
        model[0].set_registered_model_tag(model[1], HEAD, first if change == "first" else change)
    else:
        model[0].delete_registered_model_tag(model[1], HEAD)
    assert fault in " ".join(log.read().faults)
    for version in ("1", "2"):  # other commands write, and record first what moved outside
        assert log.write(promotion(version)).faults
    state = log.write(lambda state: replace(promotion("3")(state), action="force", gates=tuple(state.faults)))
    assert not state.faults and state.entries[-1].act.records_faults
    assert not log.write(promotion("1")).faults


@pytest.mark.parametrize("named", ["nothing", "no run", "another run"])
def test_a_model_that_does_not_name_its_history_any_more_continues_it(model: tuple[MlflowClient, str], named: str) -> None:
    """Somebody removed the tag in MLflow's page, or wrote something else into it."""
    log, (client, name) = write_three(model), model
    run_id = log._run_id()
    if named == "nothing":
        client.delete_registered_model_tag(name, RUN)
    else:
        client.set_registered_model_tag(name, RUN, "0" * 32 if named == "no run" else client.create_run("0").info.run_id)
    assert len(log.read().entries) == 3 and not log.read().faults
    state = log.write(promotion("1"))
    assert [entry.number for entry in state.entries] == [1, 2, 3, 4] and not state.faults and log._run_id() == run_id


def test_a_model_made_anew_with_other_tools_continues_the_history(model: tuple[MlflowClient, str]) -> None:
    log, (client, name) = write_three(model), model
    client.delete_registered_model(name)
    client.create_registered_model(name)
    client.create_model_version(name, source="again")
    state = log.write(promotion("1"))
    assert len(state.entries) == 5 and not state.faults and not state.has_registered("1") and state.earlier == 3


def test_a_changed_number_of_earlier_entries_is_reported(model: tuple[MlflowClient, str]) -> None:
    log = write_three(model)
    model[0].set_registered_model_tag(model[1], EARLIER, "abc")
    assert log.read().faults == [f"history: the tag {EARLIER} of the model was changed"]
