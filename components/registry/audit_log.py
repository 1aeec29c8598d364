"""Who moved which version where, when, why, and on which figures: a list that only grows, kept in MLflow beside the models.

An entry is a parameter of one MLflow run. MLflow refuses to change a parameter, so the first writer of a number has it, on this
machine or on another, and a second one reads again and decides again. Every entry carries the hash of the one before, and the
registered model carries number and hash of the last: an entry that was edited, left out or cut off by other means is found.

A move is an entry, then the aliases, then the word that it is done. Until that word, other writers wait; for one who died, the next
completes it. Aliases that were moved by MLflow's own means enter the list as what they are: moved outside of it.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from components.errors import JobFailed
from components.provenance import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

Action = Literal["register", "promote", "force", "refuse", "rollback", "outside"]
PLACES = ("candidate", "staging", "production", "archived")
"""The aliases. ``archived`` is the version that left production last; all that left it have the legacy stage ``Archived``."""
EXPERIMENT, RUN, HEAD = "omnimri-registry", "history_run", "history_head"
LONGEST = 6000
"""MLflow's limit for a parameter, characters; it cuts what is longer without a word."""
LEASE_S = 30.0
"""For so long a writer may take to move the aliases before others take it for dead."""
FIRST = "0" * 64
DONE = ".done"


@dataclass(frozen=True)
class Move:
    """An alias that goes from one version to another; "" = none."""

    place: str
    before: str
    after: str


@dataclass(frozen=True)
class Act:
    """What somebody decides to do.

    Attributes:
        version: that it is about; weights: digest of its weights; place: where it is to go.
        moves: aliases that change; none for a refusal.
        reason: in the words of who did it; gates: why the gate was shut, whether or not it was forced.
        figures: [metric, value, value of the version in place or None], as the gate saw them.
    """

    action: Action
    version: str
    place: str = ""
    moves: tuple[Move, ...] = ()
    reason: str = ""
    gates: tuple[str, ...] = ()
    figures: tuple[tuple[str, float, float | None], ...] = ()
    weights: str = ""


@dataclass(frozen=True)
class Entry:
    """An act as it stands in the list.

    Attributes:
        number: from 1; at: UTC, ISO 8601; who: user and machine.
        previous, hash: SHA-256 of the entry before and of this one.
        done: the aliases have followed.
    """

    number: int
    at: str
    who: str
    act: Act
    previous: str
    hash: str
    done: bool = True

    @property
    def content(self) -> list[Any]:
        """What the hash is of."""
        return [self.number, self.at, self.who, asdict(self.act), self.previous]


def placements(entries: Sequence[Entry]) -> dict[str, str]:
    """Alias -> version after these entries."""
    places: dict[str, str] = {}
    for entry in entries:
        places.update({move.place: move.after for move in entry.act.moves})
    return {place: version for place, version in places.items() if version}


def held(entries: Sequence[Entry], place: str) -> list[str]:
    """The versions that a place has had and could go back to, the present one last: a rollback takes one off."""
    stack: list[str] = []
    for entry in entries:
        for move in entry.act.moves:
            if move.place != place:
                continue
            if entry.act.action == "rollback":
                stack.pop()
            elif move.after:
                stack.append(move.after)
            else:
                stack.clear()
    return stack


def faults(entries: Sequence[Entry], head: str) -> list[str]:
    """What does not fit: entries that were changed, left out or cut off; none means that the list is whole."""
    found: list[str] = []
    previous = FIRST
    for number, entry in enumerate(entries, start=1):
        if entry.number != number:
            return [*found, f"history: entry {number} is missing"]
        if entry.hash != digest(*entry.content):
            found.append(f"history: entry {number} was changed")
        elif entry.previous != previous:
            found.append(f"history: what stood before entry {number} was changed")
        previous = entry.hash
    last, _, last_hash = head.partition(" ")
    if last and int(last) > len(entries):
        found.append(f"history: {int(last) - len(entries)} entries at its end are missing")
    elif last and entries[int(last) - 1].hash != last_hash:
        found.append(f"history: entry {last} is not the one that was noted on the model")
    return found


@dataclass(frozen=True)
class State:
    """The list as it was read.

    Attributes:
        head: number and hash that the registered model carries; aliases: as MLflow has them.
    """

    entries: tuple[Entry, ...]
    head: str
    aliases: dict[str, str]

    @property
    def faults(self) -> list[str]:
        """See :func:`faults`."""
        return faults(self.entries, self.head)

    @property
    def moved_outside(self) -> tuple[Move, ...]:
        """Aliases that are not where the list left them."""
        known = placements(self.entries)
        differ = [place for place in PLACES if known.get(place) != self.aliases.get(place)]
        return tuple(Move(place, known.get(place, ""), self.aliases.get(place, "")) for place in differ)


class History:
    """The list of one registered model.

    Args:
        follow: brings whatever mirrors the aliases in line with them.
    """

    def __init__(self, client: MlflowClient, name: str, follow: Callable[[], None] = lambda: None) -> None:
        self.client, self.name, self.follow = client, name, follow

    def read(self) -> State:
        """The list now; empty where nothing was ever written.

        Raises:
            JobFailed: the run that holds it is gone.
        """
        from mlflow.exceptions import MlflowException

        model = self.client.get_registered_model(self.name)  # before the entries: what it notes is then among them
        run_id, head = model.tags.get(RUN), model.tags.get(HEAD, "")
        try:
            parameters = self.client.get_run(run_id).data.params if run_id else {}
        except MlflowException:
            raise JobFailed(
                "the run that holds the history is gone",
                where=f"{self.name}, MLflow run {run_id}",
                remedy="restore MLflow's store from its backup",
            ) from None
        entries = [_entry(_whole(key, parameters), f"{key}{DONE}" in parameters) for key in sorted(parameters) if key.isdigit()]
        aliases = {place: str(version) for place, version in self.client.get_registered_model(self.name).aliases.items()}
        return State(tuple(entries), head, {place: version for place, version in aliases.items() if place in PLACES})

    def write(self, decide: Callable[[State], Act | None]) -> State:
        """Add what ``decide`` makes of the list as it stands, and move the aliases; ``None`` adds nothing.

        It is called again where another writer was first, and may raise whatever speaks against the act.
        """
        run_id = self._run()
        while True:
            state = self._settled(run_id)
            act = decide(state)
            if act is None:
                return state
            if self._claimed(run_id, state, act):
                return self._settled(run_id)

    def _settled(self, run_id: str) -> State:
        """The list with every entry done and nothing moved outside of it."""
        while True:
            state = self.read()
            open_ones = [entry for entry in state.entries if not entry.done]
            if open_ones:
                entry = open_ones[0]
                if (datetime.now(UTC) - datetime.fromisoformat(entry.at)).total_seconds() > LEASE_S:
                    self._follow(run_id, state, entry)
                else:
                    time.sleep(0.1)
            elif state.moved_outside:
                moved = state.moved_outside
                self._claimed(run_id, state, Act("outside", moved[-1].after or moved[-1].before, moved[-1].place, moved))
            else:
                return state

    def _claimed(self, run_id: str, state: State, act: Act) -> bool:
        """Write the next entry and follow it; false where its number is taken."""
        from mlflow.exceptions import MlflowException

        number = len(state.entries) + 1
        previous = state.entries[-1].hash if state.entries else FIRST
        entry = Entry(number, datetime.now(UTC).isoformat(timespec="milliseconds"), whoever(), act, previous, "", done=False)
        entry = replace(entry, hash=digest(*entry.content))
        try:
            for key, text in _parts(entry).items():
                self.client.log_param(run_id, key, text)
        except MlflowException as error:
            if error.error_code == "INVALID_PARAMETER_VALUE":
                return False
            raise
        self._follow(run_id, state, entry)
        return True

    def _follow(self, run_id: str, state: State, entry: Entry) -> None:
        """Bring aliases, mirrors and the model's note in line with an entry, and say that it is done; twice does no harm."""
        wanted = placements([*state.entries[: entry.number - 1], entry])
        for place in {move.place for move in entry.act.moves}:
            if place in wanted:
                self.client.set_registered_model_alias(self.name, place, wanted[place])
            else:
                self.client.delete_registered_model_alias(self.name, place)
        self.follow()
        self.client.set_registered_model_tag(self.name, HEAD, f"{entry.number} {entry.hash}")
        self.client.log_param(run_id, f"{_key(entry.number)}{DONE}", entry.hash)

    def _run(self) -> str:
        """The run that holds the list. It and the registered model come into being together, so that there is never a second."""
        from mlflow.exceptions import MlflowException

        def noted() -> str | None:
            return self.client.get_registered_model(self.name).tags.get(RUN)

        try:
            run_id = noted()
        except MlflowException:
            made = self._made()
            try:
                self.client.create_registered_model(self.name, tags={RUN: made})
                return made
            except MlflowException:  # another was first
                self.client.delete_run(made)
                run_id = noted()
        if run_id is None:  # a model that was registered before there was a history
            self.client.set_registered_model_tag(self.name, RUN, self._made())
            run_id = noted()
        assert run_id is not None
        return run_id

    def _made(self) -> str:
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_experiment_by_name(EXPERIMENT)
            experiment = found.experiment_id if found else self.client.create_experiment(EXPERIMENT)
        except MlflowException:  # made by another in the meantime
            found = self.client.get_experiment_by_name(EXPERIMENT)
            assert found is not None
            experiment = found.experiment_id
        run = self.client.create_run(experiment, run_name=f"history of {self.name}", tags={"omnimri.history": self.name})
        self.client.set_terminated(run.info.run_id)
        return str(run.info.run_id)


def whoever() -> str:
    """Who acts: ``OMNIMRI_USER``, or user and machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return os.environ.get("OMNIMRI_USER") or f"{user}@{socket.gethostname()}"


def _key(number: int) -> str:
    return f"{number:06d}"


def _parts(entry: Entry) -> dict[str, str]:
    """An entry as parameters: its JSON under its number, and, of a long one, the rest first, under names that are its own."""
    fields = asdict(entry)
    del fields["done"]
    text, key = json.dumps(fields, separators=(",", ":")), _key(entry.number)
    if len(text) <= LONGEST:
        return {key: text}
    step = LONGEST - 100
    rest = {f"{key}.{entry.hash[:12]}.{start // step}": text[start : start + step] for start in range(step, len(text), step)}
    return {**rest, key: f"{' '.join(rest)}\n{text[:step]}"}


def _whole(key: str, parameters: Mapping[str, str]) -> str:
    text = parameters[key]
    if text.startswith("{"):
        return text
    names, _, first = text.partition("\n")
    return first + "".join(parameters.get(name, "") for name in names.split())


def _entry(text: str, done: bool) -> Entry:
    plain = json.loads(text)
    act = plain["act"]
    act = Act(
        **{
            **act,
            "moves": tuple(Move(**move) for move in act["moves"]),
            "gates": tuple(act["gates"]),
            "figures": tuple((name, ours, theirs) for name, ours, theirs in act["figures"]),
        }
    )
    return Entry(**{**plain, "act": act}, done=done)
