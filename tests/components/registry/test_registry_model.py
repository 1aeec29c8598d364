"""A model of the registry: whatever operators, crashes, clocks and other tools do, the history is whole and explains every alias.

Each command may be killed at any call of MLflow's client, suspended there for longer than its lease while another command runs, and
started on a machine whose clock is wrong. Other tools delete versions, move aliases, rename the model, delete runs and
experiments, and edit tags and entries of the history.
"""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from mlflow import MlflowClient

from components.errors import JobFailed, OmniMRIError
from components.model_files import weights_digest
from components.provenance import code_digest, digest, file_md5
from components.registries import TASKS
from components.registry import audit_log, history, promote, rollback, show_version
from components.registry.audit_entries import HEAD, PLACES, alias_versions
from components.registry.audit_log import AuditLog
from components.registry.model_version import LOCK, REQUIRED_TAGS
from components.registry.promotion import SMOKE_TESTED
from components.registry.promotion_gate import CASES, RESULTS
from components.registry.registration import PACKAGES, audit_log_of, complete_registration
from components.settings import RegistrySettings
from tests.helpers.mlflow_store import create_store

LONGEST_S = 30.0
"""Time within which every command must end."""
CALLS = (
    "create_model_version",
    "create_registered_model",
    "create_run",
    "delete_registered_model_alias",
    "log_param",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_registered_model_tag",
    "set_terminated",
    "transition_model_version_stage",
)
"""Calls of MLflow's client that change the store."""


class Killed(BaseException):
    """Stand-in for SIGKILL."""


class Clock:
    """The clock of this machine, without waiting: a sleep takes two seconds or more, a reading a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 2.0)


@contextmanager
def disturbed(at: int, disturb: Callable[[], object]) -> Iterator[None]:
    """Call ``disturb`` instead of, or before, the ``at``-th change of the store."""
    count = itertools.count()

    def wrapped(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if next(count) == at:
            disturb()
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as changed:
        for name in CALLS:
            original = getattr(MlflowClient, name)
            changed.setattr(MlflowClient, name, lambda *a, _original=original, **k: wrapped(_original, *a, **k))
        yield


def kill() -> None:
    raise Killed


def clock_ahead(by: timedelta) -> type[datetime]:
    """Return ``datetime`` on a machine whose clock is wrong."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    return Wrong


Disturbance = Literal["none", "kill", "overtaken"]
PLACE = st.sampled_from(["staging", "production"])
DISTURBANCE = st.tuples(st.sampled_from(["none", "kill", "overtaken"]), st.integers(0, 9))


class Registry(RuleBasedStateMachine):
    """One registered model in a real MLflow store."""

    folder: Path
    serial = itertools.count()

    @initialize()
    def create(self) -> None:
        self.name = f"model-{next(self.serial)}"
        self.settings = RegistrySettings(name=self.name)
        self.uri = f"sqlite:///{self.folder / 'mlflow.db'}"
        self.client, self.clock, self.wrong_by = MlflowClient(self.uri), Clock(), timedelta()
        self.random = random.Random(0)
        self.run(self.register_version)

    def register_version(self) -> None:
        """Register the next version, as ``register`` does once its files are stored."""
        audit_log_of(self.uri, self.name).create()
        weights = weights_digest(self.folder / "model")
        rows = [[task, "score", True, 0.8] for task in TASKS]
        identity = digest(weights, code_digest(*PACKAGES), file_md5(LOCK) if LOCK.exists() else "")
        tags = dict.fromkeys(REQUIRED_TAGS, "x") | {"weights_digest": weights, RESULTS: json.dumps(rows), CASES: "cases"}
        tags |= {"validation_passed": "True", SMOKE_TESTED: identity}  # the smoke test has a test of its own
        version = self.client.create_model_version(self.name, str(self.folder / "model"), tags=tags)
        complete_registration(show_version(str(version.version), self.uri, self.name), self.uri)

    def numbers(self) -> list[str]:
        return sorted(str(one.version) for one in self.client.search_model_versions(f"name='{self.name}'"))

    def run(self, command: Callable[[], object], disturbance: tuple[Disturbance, int] = ("none", 0)) -> None:
        """Run a command with a disturbance; only errors with a remedy are allowed, and no command takes too long."""
        kind, at = disturbance
        actions = {"none": lambda: None, "kill": kill, "overtaken": self.overtake}
        started = self.clock.now
        clocks = patch.multiple(audit_log, time=self.clock, datetime=clock_ahead(self.wrong_by))
        with suppress(OmniMRIError, *([Killed] if kind == "kill" else [])), clocks, disturbed(at, actions[kind]):
            command()
        allowed = 2 * LONGEST_S if kind == "overtaken" else LONGEST_S
        assert self.clock.now - started < allowed

    def overtake(self) -> None:
        """Let another writer run a command while this one is suspended."""
        if numbers := self.numbers():
            with suppress(OmniMRIError):
                promote(self.random.choice(numbers), "production", self.uri, self.settings, "other writer", force=True)

    @rule(disturbance=DISTURBANCE)
    def register(self, disturbance: tuple[Disturbance, int]) -> None:
        self.run(self.register_version, disturbance)

    @rule(choice=st.randoms(use_true_random=False), place=PLACE, force=st.booleans(), disturbance=DISTURBANCE)
    def promote(
        self, choice: random.Random, place: Literal["staging", "production"], force: bool, disturbance: tuple[Disturbance, int]
    ) -> None:
        if numbers := self.numbers():
            self.run(partial(promote, choice.choice(numbers), place, self.uri, self.settings, "reason", force), disturbance)

    @rule(place=PLACE, disturbance=DISTURBANCE)
    def roll_back(self, place: Literal["staging", "production"], disturbance: tuple[Disturbance, int]) -> None:
        self.run(partial(rollback, place, self.uri, self.settings, "reason"), disturbance)

    @rule(choice=st.randoms(use_true_random=False))
    def delete_a_version_outside(self, choice: random.Random) -> None:
        if len(numbers := self.numbers()) > 1:
            self.client.delete_model_version(self.name, choice.choice(numbers))

    @rule(choice=st.randoms(use_true_random=False), place=st.sampled_from(PLACES), remove=st.booleans())
    def move_an_alias_outside(self, choice: random.Random, place: str, remove: bool) -> None:
        if remove:
            self.client.delete_registered_model_alias(self.name, place)
        elif numbers := self.numbers():
            self.client.set_registered_model_alias(self.name, place, choice.choice(numbers))

    @rule()
    def rename_the_model_outside(self) -> None:
        self.client.rename_registered_model(self.name, f"{self.name}-renamed")
        self.run(self.expect_refusal)
        self.client.rename_registered_model(f"{self.name}-renamed", self.name)

    @rule(experiment=st.booleans())
    def delete_the_history_outside(self, experiment: bool) -> None:
        run_id = self.client.get_registered_model(self.name).tags[audit_log.RUN]
        identity = self.client.get_run(run_id).info.experiment_id
        (self.client.delete_experiment if experiment else self.client.delete_run)(identity if experiment else run_id)
        self.run(self.expect_refusal)
        (self.client.restore_experiment if experiment else self.client.restore_run)(identity if experiment else run_id)

    @rule()
    def delete_the_model_outside(self) -> None:
        self.client.delete_registered_model(self.name)
        self.run(self.register_version)

    @rule(how=st.sampled_from(["last entry", "head", "head removed", "run", "run removed"]))
    def damage_the_history_outside(self, how: str) -> None:
        """Every command goes on reporting it until a forced promotion records it; a run that is not named is found."""
        if not (numbers := self.numbers()):
            return
        entries = AuditLog(self.client, self.name).read().entries
        if how == "last entry":
            with closing(sqlite3.connect(self.folder / "mlflow.db")) as store, store:
                run_id, key = self.client.get_registered_model(self.name).tags[audit_log.RUN], f"{entries[-1].number:06d}%"
                store.execute("DELETE FROM params WHERE run_uuid = ? AND key LIKE ?", [run_id, key])
        else:
            tag = audit_log.RUN if how.startswith("run") else HEAD
            self.client.set_registered_model_tag(self.name, tag, "abc")
            if how.endswith("removed"):
                self.client.delete_registered_model_tag(self.name, tag)
        self.run(self.register_version, ("none", 0))
        assert bool(AuditLog(self.client, self.name).read().faults) == (not how.startswith("run"))
        self.client.delete_registered_model_alias(self.name, "production")
        self.run(partial(promote, numbers[-1], "production", self.uri, self.settings, "known damage", force=True))

    def expect_refusal(self) -> None:
        with pytest.raises(JobFailed):
            AuditLog(self.client, self.name).write(lambda state: None)

    @rule(hours=st.integers(-48, 48))
    def set_the_clock(self, hours: int) -> None:
        self.wrong_by = timedelta(hours=hours)

    @invariant()
    def the_history_is_whole_and_explains_every_alias(self) -> None:
        if not hasattr(self, "client"):
            return
        self.run(lambda: audit_log_of(self.uri, self.name).write(lambda state: None))  # the next command, whatever it is
        state = AuditLog(self.client, self.name).read()
        assert not state.faults and not state.moved_outside
        assert all(entry.done for entry in state.entries)
        assert alias_versions(state.entries) == state.aliases
        for index, entry in enumerate(state.entries):
            held = alias_versions(state.entries[:index])
            assert all(held.get(move.place, "") == move.before for move in entry.act.moves)
        if self.numbers():
            assert history(self.uri, self.name)[1] == []


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> type[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    create_store(folder / "mlflow.db")
    (folder / "model").mkdir()
    for name in ("config.json", "preprocessing.json", "model.safetensors"):
        (folder / "model" / name).write_text(name)

    class InFolder(Registry):
        pass

    InFolder.folder = folder
    return InFolder


def check(machine: type[Registry], examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_history_stays_whole(machine: type[Registry]) -> None:
    check(machine, examples=4, steps=8)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_history_stays_whole_in_many_examples(machine: type[Registry]) -> None:
    """Slow: nine minutes; an example of twenty steps takes five seconds."""
    check(machine, examples=100, steps=25)
