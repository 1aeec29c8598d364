"""Append-only audit log of a registered model: who moved which version to which alias, when, why, and with which metrics.

Each entry (:mod:`components.registry.audit_entries`) is a parameter of one MLflow run. MLflow refuses to overwrite a parameter, so
the first writer of an entry number wins, on this machine or another; a second writer reads the log again and decides again.

Two-phase write: append the entry, move the aliases, mark the entry as done. Other writers wait for the mark; a later writer
completes an abandoned entry. Aliases that were moved with MLflow's own tools are recorded as the action ``outside``.
"""

from __future__ import annotations

import getpass
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.errors import JobFailed
from components.home import Home
from components.provenance import digest
from components.registry.audit_entries import (
    EARLIER,
    GENESIS_HASH,
    HEAD,
    PLACES,
    Action,
    AuditState,
    Entry,
    alias_versions,
    entry_key,
    head_faults,
    head_tags,
    join_parts,
    parse_entry,
    set_back_faults,
    split_parts,
)
from components.tracking.histories import EXPERIMENT, NAME, RUN, find_history_run, require_not_renamed
from components.tracking.runs import find_experiment, require_active, restore_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

LEASE_S = 10.0
"""Seconds, on the clock of the process that waits, after which it treats the entry of another writer as abandoned."""
PATIENCE_S = 25.0
"""Seconds that a process waits for other writers in all before it gives up; the time of its own decision does not count."""
DONE = ".done"
_NUMBER = re.compile(r"[0-9]{1,9}")


class _Busy(JobFailed):
    """Other processes write the history all the time."""


class AuditLog:
    """The audit log of one registered model.

    Args:
        mirror: called after aliases were moved, to update whatever mirrors them.
    """

    def __init__(self, client: MlflowClient, name: str, mirror: Callable[[], None] = lambda: None) -> None:
        self.client, self.name, self.mirror = client, name, mirror

    def read(self) -> AuditState:
        """Read the log; it is empty if nothing was ever written.

        Raises:
            JobFailed: the MLflow run that stores the log was deleted for good.
        """
        model = self.client.get_registered_model(self.name)  # read before the entries, so that they include its head
        run_id, head = self._history_run(model.tags), model.tags.get(HEAD, "")
        entries = self._entries(run_id) if run_id else ()
        model = self.client.get_registered_model(self.name)  # and after them, so that its head includes what is done
        aliases = {place: str(version) for place, version in model.aliases.items() if place in PLACES}
        earlier, tag_faults = model.tags.get(EARLIER, "0"), set_back_faults(entries, model.tags.get(HEAD, ""))
        if not _NUMBER.fullmatch(earlier):
            earlier, tag_faults = "0", [*tag_faults, f"history: the tag {EARLIER} of the model was changed"]
        return AuditState(entries, head, aliases, int(earlier), tuple(tag_faults))

    def _entries(self, run_id: str) -> tuple[Entry, ...]:
        from mlflow.exceptions import MlflowException

        try:
            parameters = self.client.get_run(run_id).data.params
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise JobFailed(
                "the MLflow run that stores the history was deleted for good",
                where=f"{self.name}, MLflow run {run_id}",
                remedy="restore MLflow's store from its backup",
            ) from None
        numbers = sorted((key for key in parameters if _NUMBER.fullmatch(key)), key=int)
        return tuple(parse_entry(int(key), join_parts(key, parameters), f"{key}{DONE}" in parameters) for key in numbers)

    def create(self) -> None:
        """Create the registered model and its history where they do not exist."""
        self._run_id()

    def write(self, decide: Callable[[AuditState], Action | None]) -> AuditState:
        """Append the action that ``decide`` returns for the current log, and move the aliases; None appends nothing.

        ``decide`` is called again if another writer was first. Exceptions that it raises are passed on.

        Raises:
            JobFailed: the history cannot be written (its run, experiment or model was deleted or renamed), or other writers were
                faster every time.
        """
        run_id = self._run_id()
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            state = self._read_settled(run_id, deadline)
            started = time.monotonic()
            action = decide(state)
            deadline += time.monotonic() - started
            if action is None:
                return state
            if self._try_append(run_id, state, action):
                return self._read_written(run_id, deadline)
        raise self._busy()

    def _read_written(self, run_id: str, deadline: float) -> AuditState:
        """Return the log after an own entry is done, settled if other writers allow that in time."""
        try:
            return self._read_settled(run_id, deadline)
        except _Busy:
            return self.read()

    def _busy(self) -> JobFailed:
        return _Busy("other processes write its history all the time", where=self.name, remedy="run the command again")

    def _read_settled(self, run_id: str, deadline: float) -> AuditState:
        """Return the log after every entry is done and every outside move is recorded.

        Only this process's monotonic clock decides when another writer's entry is abandoned: the clocks of two machines differ.

        Raises:
            _Busy: that takes longer than until the deadline.
        """
        first_seen: dict[str, float] = {}
        while time.monotonic() < deadline:
            state = self.read()
            pending = [entry for entry in state.entries if not entry.done]
            if pending:
                entry = pending[0]
                if time.monotonic() - first_seen.setdefault(entry.hash, time.monotonic()) >= LEASE_S:
                    self._apply(run_id, entry)
                else:
                    time.sleep(0.1)
            elif state.moved_outside:
                moved = state.moved_outside
                self._try_append(run_id, state, Action("outside", moved[-1].after or moved[-1].before, moved[-1].place, moved))
            else:
                return state
        raise self._busy()

    def _try_append(self, run_id: str, state: AuditState, action: Action) -> bool:
        """Write the next entry and apply it. Return false if its number is already taken."""
        from mlflow.exceptions import MlflowException

        number = state.entries[-1].number + 1 if state.entries else 1
        previous = state.entries[-1].hash if state.entries else GENESIS_HASH
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        entry = Entry(number, now, current_user(), action, previous, "", done=False, nonce=secrets.token_hex(8))
        entry = replace(entry, hash=digest(*entry.content))
        try:
            for key, text in split_parts(entry).items():
                self.client.log_param(run_id, key, text)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            self._require_active(run_id)
            if any(entry.number >= number for entry in self._entries(run_id)):
                return False
            raise JobFailed(
                f"MLflow refused an entry of the history: {error.message}",
                where=self.name,
                remedy="omnimri history names entries that were removed; restore MLflow's store from its backup",
            ) from None
        self._apply(run_id, entry)
        return True

    def _apply(self, run_id: str, entry: Entry) -> None:
        """Move aliases and mirrors, record the head on the model, and mark the entry as done. Idempotent.

        A writer that was suspended for longer than its lease may find that others have completed its entry and written more. It
        sets what the newest entry says, and looks again afterwards, so that it never undoes their decisions.

        The head is evidence: where it contradicts the log, it stays until a forced promotion has recorded the fault.
        """
        entries: tuple[Entry, ...] = ()
        found = self._entries(run_id)
        while found != entries:
            entries, target = found, alias_versions(found)
            new = [later for later in entries if later.number >= entry.number]
            for place in sorted({move.place for later in new for move in later.act.moves}):
                self._set_alias(place, target.get(place, ""))
            self.mirror()
            head = self.client.get_registered_model(self.name).tags.get(HEAD, "")
            faults = [*head_faults(entries, head, entries[-1].number), *set_back_faults(entries, head)]
            if not faults or any(later.act.records_faults for later in new):
                self.client.set_registered_model_tag(self.name, HEAD, f"{entries[-1].number} {entries[-1].hash}")
            found = self._entries(run_id)
        # Last: other writers wait for it, and an alias that is set after it would look like a move from outside.
        self.client.log_param(run_id, f"{entry_key(entry.number)}{DONE}", entry.hash)

    def _set_alias(self, place: str, version: str) -> None:
        """Point an alias to a version; remove it if the version is "" or was deleted, which is then recorded as an outside move."""
        from mlflow.exceptions import MlflowException

        if version:
            try:
                self.client.set_registered_model_alias(self.name, place, version)
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        self.client.delete_registered_model_alias(self.name, place)

    def _run_id(self) -> str:
        """Return the run that stores the log. It is created with the registered model, so that there is only one.

        A model that was deleted outside continues its history: the next entry records that its aliases are gone.
        """
        from mlflow.exceptions import MlflowException

        try:
            tags = self.client.get_registered_model(self.name).tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            tags = self._create_model()
        run_id = self._history_run(tags)
        if run_id is None:  # a model that was registered before audit logs existed
            run_id = self._create_run()
        if tags.get(RUN) != run_id:
            self._adopt(run_id)
            run_id = self.client.get_registered_model(self.name).tags[RUN]
        self._require_active(run_id)
        return run_id

    def _history_run(self, tags: Mapping[str, str]) -> str | None:
        """Return the run that the tags of the model name; if that is no history, the one that names the model."""
        from mlflow.exceptions import MlflowException

        if recorded := tags.get(RUN):
            try:
                if NAME in self.client.get_run(recorded).data.tags:
                    return recorded
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    raise
        return find_history_run(self.client, self.name) or recorded

    def _adopt(self, run_id: str) -> None:
        """Let the registered model name its run again: other tools removed the tag, or made the whole model anew.

        A model that was made after the last entry takes over the history as an earlier one's.
        """
        model, entries = self.client.get_registered_model(self.name), self._entries(run_id)
        made = datetime.fromtimestamp(model.creation_timestamp / 1000, UTC).isoformat(timespec="milliseconds")
        if entries and HEAD not in model.tags and entries[-1].at < made:
            for name, value in head_tags(entries).items():
                self.client.set_registered_model_tag(self.name, name, value)
        self.client.set_registered_model_tag(self.name, RUN, run_id)

    def _require_active(self, run_id: str) -> None:
        """Check that MLflow accepts entries.

        Raises:
            JobFailed: the run or its experiment was deleted, and can be restored.
        """
        from mlflow.exceptions import MlflowException

        try:
            run = self.client.get_run(run_id)
        except MlflowException:
            return  # deleted for good: reading the entries says so
        if run.info.lifecycle_stage == "active":
            return
        experiment = self.client.get_experiment(run.info.experiment_id)
        require_active(experiment)
        raise JobFailed(
            "the MLflow run that stores the history was deleted",
            where=f"{self.name}, MLflow run {run_id}",
            remedy=restore_command("runs", "--run-id", run_id),
        )

    def _create_model(self) -> dict[str, str]:
        """Create the registered model with the run of its earlier history, or a new one; return its tags.

        Raises:
            JobFailed: the model was renamed outside of OmniMRI.
        """
        from mlflow.exceptions import MlflowException

        existing = find_history_run(self.client, self.name)
        if existing is not None:
            require_not_renamed(self.client, self.name)
        run_id = existing or self._create_run()
        tags = {RUN: run_id, **head_tags(self._entries(run_id))}
        try:
            self.client.create_registered_model(self.name, tags=tags)
        except MlflowException:  # another writer was first
            tags = self.client.get_registered_model(self.name).tags
            if existing is None and tags.get(RUN) != run_id:
                self.client.delete_run(run_id)
        return tags

    def _create_run(self) -> str:
        run = self.client.create_run(
            find_experiment(self.client, EXPERIMENT, Home.open()), run_name=f"history of {self.name}", tags={NAME: self.name}
        )
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)


def current_user() -> str:
    """Return ``OMNIMRI_USER``, or user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return os.environ.get("OMNIMRI_USER") or f"{user}@{socket.gethostname()}"
