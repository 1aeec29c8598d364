"""Entries of the audit log of a registered model: what they record, how they are chained and stored, which aliases they explain.

An entry is a parameter of an MLflow run. Each carries the hash of the one before, and the registered model carries number and hash
of the last one, so that edited, removed and truncated entries are detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from components.provenance import digest

ActionKind = Literal["register", "promote", "force", "refuse", "rollback", "outside", "unreadable"]
PLACES = ("candidate", "staging", "production", "archived")
"""The aliases. ``archived``: the version that left production last; all that left it have the legacy stage ``Archived``."""
HEAD, EARLIER = "history_head", "history_earlier"
"""Tags of the registered model: number and hash of the last entry; number of the last one about a deleted model of this name."""
MAX_PARAMETER_LENGTH = 6000
"""Characters of a parameter that MLflow stores; it truncates longer values without an error."""
GENESIS_HASH = "0" * 64
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
    return [*problems, *head_faults(entries, head, expected - 1)]


def head_faults(entries: Sequence[Entry], head: str, last: int) -> list[str]:
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


def set_back_faults(entries: Sequence[Entry], head: str) -> list[str]:
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


def entry_key(number: int) -> str:
    """Return the name of the parameter that an entry is stored under."""
    return f"{number:06d}"


def split_parts(entry: Entry) -> dict[str, str]:
    """Return an entry as parameters: its JSON under its number. A long one is split; the other parts get unique names."""
    fields = asdict(entry)
    del fields["done"]
    text, key = json.dumps(fields, separators=(",", ":")), entry_key(entry.number)
    if len(text) <= MAX_PARAMETER_LENGTH:
        return {key: text}
    step = MAX_PARAMETER_LENGTH - 100
    rest = {f"{key}.{entry.hash[:12]}.{start // step}": text[start : start + step] for start in range(step, len(text), step)}
    return {**rest, key: f"{' '.join(rest)}\n{text[:step]}"}


def join_parts(key: str, parameters: Mapping[str, str]) -> str:
    """Return the JSON of an entry from its parameters (:func:`split_parts`)."""
    text = parameters[key]
    if text.startswith("{"):
        return text
    names, _, first = text.partition("\n")
    return first + "".join(parameters.get(name, "") for name in names.split())


_ENTRY = TypeAdapter(Entry)


def head_tags(entries: Sequence[Entry]) -> dict[str, str]:
    """Return the tags of a model that continues the history of an earlier one."""
    return {HEAD: f"{entries[-1].number} {entries[-1].hash}", EARLIER: str(entries[-1].number)} if entries else {}


def parse_entry(number: int, text: str, done: bool) -> Entry:
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
