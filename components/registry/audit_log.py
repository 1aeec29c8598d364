"""Append-only audit log of a registered model: who moved which version to which alias, when, why, and with which metrics.

Each entry is a parameter of one MLflow run. MLflow refuses to overwrite a parameter, so the first writer of an entry number wins,
on this machine or another; a second writer reads the log again and decides again. Each entry carries the hash of the previous one,
and the registered model carries number and hash of the last one, so that edited, removed and truncated entries are detected.

Two-phase write: append the entry, move the aliases, mark the entry as done. Other writers wait for the mark; a later writer
completes an abandoned entry. Aliases that were moved with MLflow's own tools are recorded as the action ``outside``.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter

from components.errors import JobFailed
from components.home import Home
from components.provenance import digest
from components.tracking.histories import EXPERIMENT, NAME, RUN, find_history_run, require_not_renamed
from components.tracking.runs import find_experiment, require_active, restore_command

if TYPE_CHECKING:
    from mlflow import MlflowClient

ActionKind = Literal["register", "promote", "force", "refuse", "rollback", "outside", "unreadable"]
PLACES = ("candidate", "staging", "production", "archived")
"""The aliases. ``archived``: the version that left production last; all that left it have the legacy stage ``Archived``."""
HEAD, EARLIER = "history_head", "history_earlier"
MAX_PARAMETER_LENGTH = 6000
"""Characters of a parameter that MLflow stores; it truncates longer values without an error."""
LEASE_S = 10.0
"""Seconds, on the clock of the process that waits, after which it treats the entry of another writer as abandoned."""
PATIENCE_S = 25.0
"""Seconds that a process waits for other writers in all before it gives up; the time of its own decision does not count."""
GENESIS_HASH = "0" * 64
DONE = ".done"
_NUMBER = re.compile(r"[0-9]{1,9}")
_HEAD = re.compile(r"([1-9][0-9]*) ([0-9a-f]{64})")


@dataclass(frozen=True)
class Move:
    """Move of an alias from one version to another; "" = none."""

    place: str
    before: str
    after: str


@dataclass(frozen=True)
class Action:
    """A decision about a version.

    Attributes:
        version: number of the version; weights: digest of its weights; place: target alias.
        moves: aliases that change; empty for a refusal.
        reason: text given by the user; gates: reasons why gates were closed, also if the promotion was forced.
        figures: (metric, value, value of the incumbent or None), as the gates compared them.
    """

    action: ActionKind
    version: str
    place: str = ""
    moves: tuple[Move, ...] = ()
    reason: str = ""
    gates: tuple[str, ...] = ()
    figures: tuple[tuple[str, float, float | None], ...] = ()
    weights: str = ""

    @property
    def records_faults(self) -> bool:
        """Return whether this is a promotion that was forced although the log had faults, which it names."""
        return self.action == "force" and any(gate.startswith("history:") for gate in self.gates)


@dataclass(frozen=True)
class Entry:
    """An action as recorded in the log.

    Attributes:
        number: from 1; at: UTC, ISO 8601; who: user and machine.
        previous, hash: SHA-256 of the previous entry and of this one.
        done: the aliases have been moved.
        nonce: distinguishes two writers that record the same action in the same millisecond: MLflow accepts an equal value twice.
    """

    number: int
    at: str
    who: str
    act: Action
    previous: str
    hash: str
    done: bool = True
    nonce: str = ""

    @property
    def content(self) -> list[Any]:
        """Return the values that are hashed."""
        return [self.number, self.at, self.who, asdict(self.act), self.previous]


def alias_versions(entries: Sequence[Entry]) -> dict[str, str]:
    """Return alias -> version after these entries."""
    places: dict[str, str] = {}
    for entry in entries:
        places.update({move.place: move.after for move in entry.act.moves})
    return {place: version for place, version in places.items() if version}


def alias_stack(entries: Sequence[Entry], place: str) -> list[str]:
    """Return the versions that an alias can be rolled back to, the current one last. A rollback pops one."""
    stack: list[str] = []
    for entry in entries:
        for move in entry.act.moves:
            if move.place != place:
                continue
            if entry.act.action == "rollback":
                del stack[-1:]  # empty if earlier entries were removed
            elif move.after:
                stack.append(move.after)
            else:
                stack.clear()
    return stack


def integrity_faults(entries: Sequence[Entry], head: str) -> list[str]:
    """Return descriptions of changed, removed or truncated entries; an empty list means that the log is intact.

    Args:
        head: number and hash of the last entry, from the registered model, read before the entries.
    """
    problems: list[str] = []
    previous, expected = GENESIS_HASH, 1
    for entry in entries:
        problems += [f"history: entry {number} is missing" for number in range(expected, entry.number)]
        if entry.hash != digest(*entry.content):
            problems.append(f"history: entry {entry.number} was changed")
        elif entry.previous != previous and entry.number == expected:
            problems.append(f"history: the predecessor of entry {entry.number} was changed")
        previous, expected = entry.hash, entry.number + 1
    return [*problems, *_head_faults(entries, head, expected - 1)]


def _head_faults(entries: Sequence[Entry], head: str, last: int) -> list[str]:
    """Return how the last entry that the model names differs from the log, whose last entry has the number ``last``."""
    if not head:
        return []
    named = _HEAD.fullmatch(head)
    if named is None:
        return [f"history: the tag {HEAD} of the model was changed"]
    number = int(named[1])
    if number > last:
        return [f"history: {number - last} entries at its end are missing"]
    if (named[1], named[2]) not in {(str(entry.number), entry.hash) for entry in entries}:
        return [f"history: entry {number} is not the one recorded on the model"]
    return []


def _set_back(entries: Sequence[Entry], head: str) -> list[str]:
    """Return that the model names an older entry than the last one that was completed, or none.

    Args:
        head: as in :func:`integrity_faults`, but read after the entries.
    """
    named, done = _HEAD.fullmatch(head), max((entry.number for entry in entries if entry.done), default=0)
    if (named is None and head) or (int(named[1]) if named else 0) >= done:
        return []
    return [f"history: the tag {HEAD} of the model was {'set back' if head else 'removed'}"]


@dataclass(frozen=True)
class AuditState:
    """The log as it was read.

    Attributes:
        head: number and hash of the last entry, from the registered model; aliases: alias -> version in MLflow.
        earlier: number of the last entry about an earlier registered model of this name, which was deleted.
        tag_faults: what other tools have done to the tags of the model.
    """

    entries: tuple[Entry, ...]
    head: str
    aliases: dict[str, str]
    earlier: int = 0
    tag_faults: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """See :func:`integrity_faults`."""
        return [*integrity_faults(self.entries, self.head), *self.tag_faults]

    def has_registered(self, version: str) -> bool:
        """Return whether the log has an entry of the registration of a version."""
        return any(
            entry.act.action == "register" and entry.act.version == version for entry in self.entries if entry.number > self.earlier
        )

    @property
    def moved_outside(self) -> tuple[Move, ...]:
        """Return the aliases whose version differs from the last one recorded."""
        recorded = alias_versions(self.entries)
        differ = [place for place in PLACES if recorded.get(place) != self.aliases.get(place)]
        return tuple(Move(place, recorded.get(place, ""), self.aliases.get(place, "")) for place in differ)


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
        earlier, tag_faults = model.tags.get(EARLIER, "0"), _set_back(entries, model.tags.get(HEAD, ""))
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
        return tuple(_parse_entry(int(key), _join_parts(key, parameters), f"{key}{DONE}" in parameters) for key in numbers)

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
            for key, text in _split_parts(entry).items():
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
            faults = [*_head_faults(entries, head, entries[-1].number), *_set_back(entries, head)]
            if not faults or any(later.act.records_faults for later in new):
                self.client.set_registered_model_tag(self.name, HEAD, f"{entries[-1].number} {entries[-1].hash}")
            found = self._entries(run_id)
        # Last: other writers wait for it, and an alias that is set after it would look like a move from outside.
        self.client.log_param(run_id, f"{_key(entry.number)}{DONE}", entry.hash)

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
            for name, value in _head_tags(entries).items():
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
        tags = {RUN: run_id, **_head_tags(self._entries(run_id))}
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


def _key(number: int) -> str:
    return f"{number:06d}"


def _split_parts(entry: Entry) -> dict[str, str]:
    """Return an entry as parameters: its JSON under its number. A long one is split; the other parts get unique names."""
    fields = asdict(entry)
    del fields["done"]
    text, key = json.dumps(fields, separators=(",", ":")), _key(entry.number)
    if len(text) <= MAX_PARAMETER_LENGTH:
        return {key: text}
    step = MAX_PARAMETER_LENGTH - 100
    rest = {f"{key}.{entry.hash[:12]}.{start // step}": text[start : start + step] for start in range(step, len(text), step)}
    return {**rest, key: f"{' '.join(rest)}\n{text[:step]}"}


def _join_parts(key: str, parameters: Mapping[str, str]) -> str:
    text = parameters[key]
    if text.startswith("{"):
        return text
    names, _, first = text.partition("\n")
    return first + "".join(parameters.get(name, "") for name in names.split())


_ENTRY = TypeAdapter(Entry)


def _head_tags(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the tags of a model that continues the history of an earlier one."""
    return {HEAD: f"{entries[-1].number} {entries[-1].hash}", EARLIER: str(entries[-1].number)} if entries else {}


def _parse_entry(number: int, text: str, done: bool) -> Entry:
    """Parse an entry; one that is none any more, since somebody has changed it, becomes an action ``unreadable``."""
    try:
        plain = json.loads(text)
        stored = plain["act"]
        action = Action(
            **{
                **stored,
                "moves": tuple(Move(**move) for move in stored["moves"]),
                "gates": tuple(stored["gates"]),
                "figures": tuple((name, ours, theirs) for name, ours, theirs in stored["figures"]),
            }
        )
        entry = Entry(**{**plain, "act": action}, done=done)
        _ENTRY.validate_python(asdict(entry))
        if entry.number == number:
            return entry
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    return Entry(number, "", "", Action("unreadable", ""), "", "")
