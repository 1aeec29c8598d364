"""The history only grows: whatever else happens to it is found, and writers who meet each other lose nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from components.provenance import digest
from components.registry import audit_log
from components.registry.audit_log import FIRST, Act, Entry, History, Move, State, faults, held, placements


def chain(acts: Sequence[Act]) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    for number, act in enumerate(acts, start=1):
        entry = Entry(number, "2026-01-01T00:00:00+00:00", "who@where", act, entries[-1].hash if entries else FIRST, "")
        entries.append(replace(entry, hash=digest(*entry.content)))
    return tuple(entries)


def moved(place: str, before: str, after: str, action: audit_log.Action = "promote") -> Act:
    return Act(action, after, place, (Move(place, before, after),))


ACTS = st.lists(
    st.builds(Act, st.sampled_from(["promote", "refuse"]), st.text(max_size=3), reason=st.text(max_size=5)), min_size=1, max_size=6
)


@given(ACTS, st.data())
def test_whatever_is_changed_left_out_or_cut_off_is_found(acts: list[Act], data: st.DataObject) -> None:
    entries = chain(acts)
    head = f"{len(entries)} {entries[-1].hash}"
    assert not faults(entries, head)
    place = data.draw(st.integers(0, len(entries) - 1))
    old = entries[place]
    changed = replace(old, act=replace(old.act, reason=old.act.reason + "!"))
    rehashed = replace(changed, hash=digest(*changed.content))
    before, after = entries[:place], entries[place + 1 :]
    for edited in ((*before, changed, *after), (*before, rehashed, *after), (*before, *after), before):
        assert faults(edited, head)


def test_a_place_remembers_whom_it_had() -> None:
    entries = chain(
        [
            moved("production", "", "1"),
            moved("production", "1", "2"),
            moved("staging", "", "3"),
            moved("production", "2", "1", "rollback"),
            moved("production", "1", "4"),
        ]
    )
    assert placements(entries) == {"production": "4", "staging": "3"}
    assert held(entries, "production") == ["1", "4"] and held(entries[:4], "production") == ["1"]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture
def model(database: Path, request: pytest.FixtureRequest) -> tuple[MlflowClient, str]:
    """A registered model of three versions, of the test's own name."""
    client, name = MlflowClient(f"sqlite:///{database}"), digest(request.node.name)[:12]
    History(client, name)._run()
    for _ in range(3):
        client.create_model_version(name, source=str(database.parent))
    return client, name


def promotion(version: str) -> audit_log.Callable[[State], Act]:
    return lambda state: moved("production", state.aliases.get("production", ""), version)


def test_writers_who_meet_each_other_lose_nothing(model: tuple[MlflowClient, str]) -> None:
    def write(number: int) -> None:
        History(*model).write(promotion(str(1 + number % 3)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(12)))
    state = History(*model).read()
    assert [entry.number for entry in state.entries] == list(range(1, 13)) and not state.faults and not state.moved_outside
    afters = [entry.act.moves[0].after for entry in state.entries]
    assert [entry.act.moves[0].before for entry in state.entries] == ["", *afters[:-1]]
    assert sorted(afters) == sorted(str(1 + number % 3) for number in range(12))


def test_what_a_dead_writer_began_the_next_one_ends(model: tuple[MlflowClient, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def dies() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        History(*model, dies).write(promotion("1"))
    assert not History(*model).read().entries[0].done
    monkeypatch.setattr(audit_log, "LEASE_S", 0.0)
    state = History(*model).write(promotion("2"))
    assert state.aliases["production"] == "2" and all(entry.done for entry in state.entries) and not state.faults


def test_a_long_entry_is_kept_whole(model: tuple[MlflowClient, str]) -> None:
    """MLflow cuts parameters at 6,000 characters without a word."""
    gates = tuple(f"gate {number}: " + "worse " * 40 for number in range(60))
    History(*model).write(lambda state: Act("refuse", "1", "staging", gates=gates))
    state = History(*model).read()
    assert state.entries[0].act.gates == gates and not state.faults


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE params SET value = replace(value, 'good', 'bad') WHERE key = '000002' AND run_uuid = ?", "entry 2 was changed"),
        ("DELETE FROM params WHERE key LIKE '000001%' AND run_uuid = ?", "entry 1 is missing"),
        ("DELETE FROM params WHERE key LIKE '000003%' AND run_uuid = ?", "1 entries at its end are missing"),
    ],
)
def test_tampering_with_the_database_shows(model: tuple[MlflowClient, str], database: Path, statement: str, fault: str) -> None:
    for version in ("1", "2", "3"):
        act = replace(moved("production", "", version), reason="good reasons")
        History(*model).write(lambda state, act=act: act)
    with sqlite3.connect(database) as connection:
        assert connection.execute(statement, [History(*model)._run()]).rowcount >= 1
    assert fault in " ".join(History(*model).read().faults)
