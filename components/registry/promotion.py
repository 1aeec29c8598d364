"""Moving versions: through the gate, past it with a reason, and back. Every attempt is an entry of the history."""

from __future__ import annotations

from typing import Literal

from components.errors import BadInput, GateRefused
from components.evaluation import weights_digest
from components.inference import resolve_model
from components.provenance import code_digest, digest, file_md5
from components.registry.audit_log import Act, Entry, Move, State, held
from components.registry.model_version import LOCK, ModelVersion
from components.registry.promotion_gate import RESULTS, figures, gate
from components.registry.registration import PACKAGES, client_of, history_of, list_versions, show_version, version_of
from components.registry.smoke_test import silent
from components.settings import RegistrySettings

Place = Literal["staging", "production"]
ANSWERED = "answered"
"""Tag of a version that has answered its input example in a clean process: digest of weights, code and packages."""


def refusal(candidate: ModelVersion, to: Place, tracking_uri: str, settings: RegistrySettings) -> str:
    """Why the gate refuses a version, which the history then has; empty where it is open, or the version is through already."""
    if to in candidate.aliases:
        return ""
    found: list[str] = []

    def decide(state: State) -> Act | None:
        found[:] = reasons(candidate, to, state, tracking_uri, settings)
        return _refused(candidate, to, state, found, tracking_uri) if found else None

    history_of(tracking_uri, settings.name).write(decide)
    return "; ".join(found)


def promote(
    version: str, to: Place, tracking_uri: str, settings: RegistrySettings, reason: str = "", force: bool = False
) -> ModelVersion:
    """Give a version the alias ``to`` if the gate is open, or past it by force.

    The version that leaves production becomes ``archived``.

    Args:
        reason: why, for the history; a forced promotion needs one.

    Raises:
        BadInput: no such version, or force without a reason.
        GateRefused: every gate that is shut, and by how much.
    """
    if force and not reason.strip():
        raise BadInput("a forced promotion needs a reason", where="--force", remedy="say why: --reason TEXT")
    name = settings.name
    candidate = show_version(version, tracking_uri, name)
    client, trail = client_of(tracking_uri), history_of(tracking_uri, name)
    shut: list[str] = []

    def decide(state: State) -> Act | None:
        now = version_of(client, name, candidate.version)
        before = state.aliases.get(to, "")
        if before == now.version:
            return None
        shut[:] = reasons(now, to, state, tracking_uri, settings)
        if shut and not force:
            return _refused(now, to, state, shut, tracking_uri)
        moves = (Move(to, before, now.version), *_archived(state, to, now.version))
        return Act(
            "force" if shut else "promote",
            now.version,
            to,
            moves,
            reason.strip(),
            tuple(shut),
            _figures(now, to, state, tracking_uri),
            now.tags.get("weights_digest", ""),
        )

    trail.write(decide)
    if shut and not force:
        raise GateRefused(
            "; ".join(shut),
            where=f"{name} version {candidate.version} to {to}",
            remedy="train or evaluate again; --force --reason TEXT promotes all the same, and is recorded",
        )
    return version_of(client, name, candidate.version)


def rollback(place: Place, tracking_uri: str, settings: RegistrySettings, reason: str) -> ModelVersion:
    """Give a place back to the version that had it before. No gate but the weights themselves: they must be those of then.

    Raises:
        BadInput: no reason, or nothing to go back to.
        GateRefused: the earlier version's weights are not what they were.
    """
    if not reason.strip():
        raise BadInput("a rollback needs a reason", where="--reason", remedy="say why")
    name = settings.name
    show_version(place, tracking_uri, name)
    client = client_of(tracking_uri)

    def decide(state: State) -> Act:
        stack = held(state.entries, place)
        if len(stack) < 2:
            raise BadInput(f"no earlier {place} version to go back to", where=name, remedy="omnimri history shows what there was")
        leaving, earlier = stack[-1], version_of(client, name, stack[-2])
        if changed := _weights_changed(earlier, tracking_uri):
            raise GateRefused(changed, where=f"{name} version {earlier.version}", remedy="restore its files, or promote another")
        moves = (Move(place, leaving, earlier.version), *_archived(state, place, earlier.version))
        beside, weights = _figures(earlier, place, state, tracking_uri), earlier.tags.get("weights_digest", "")
        return Act("rollback", earlier.version, place, moves, reason.strip(), figures=beside, weights=weights)

    state = history_of(tracking_uri, name).write(decide)
    return version_of(client, name, state.aliases[place])


def history(tracking_uri: str, name: str) -> tuple[tuple[Entry, ...], list[str]]:
    """Every entry, and what speaks against them: entries changed or missing, aliases moved by other means since the last.

    Raises:
        BadInput: the model was never registered.
    """
    if not list_versions(tracking_uri, name):
        raise BadInput("no such model", where=name, remedy="omnimri run registers one")
    state = history_of(tracking_uri, name).read()
    outside = [
        f"history: {move.place} was moved from {move.before or 'none'} to {move.after or 'none'} by other means"
        for move in state.moved_outside
    ]
    return state.entries, [*state.faults, *outside]


def reasons(candidate: ModelVersion, to: Place, state: State, tracking_uri: str, settings: RegistrySettings) -> list[str]:
    """Everything against a promotion: history, records, weights, and whether the version answers."""
    client = client_of(tracking_uri)
    incumbents = {place: version_of(client, settings.name, number) for place, number in state.aliases.items()}
    found = [*state.faults, *gate(candidate, incumbents, to, settings)]
    if changed := _weights_changed(candidate, tracking_uri):
        return [*found, changed]
    if mute := _mute(candidate, tracking_uri):
        found.append(f"loading: {mute}")
    return found


def _uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def _weights_changed(version: ModelVersion, tracking_uri: str) -> str:
    try:
        now = weights_digest(resolve_model(_uri(version), tracking_uri))
    except BadInput as error:
        return f"weights: {error.what}"
    return "" if now == version.tags.get("weights_digest") else "weights: the files are not those that were evaluated"


def _mute(candidate: ModelVersion, tracking_uri: str) -> str:
    """Why a version does not answer. What the same weights, code and packages have shown once is not asked again."""
    client = client_of(tracking_uri)
    same = digest(candidate.tags.get("weights_digest"), code_digest(*PACKAGES), file_md5(LOCK) if LOCK.exists() else "")
    if any(one.tags.get(ANSWERED) == same for one in list_versions(tracking_uri, candidate.name)):
        return ""
    mute = silent(_uri(candidate), tracking_uri)
    if not mute:
        client.set_model_version_tag(candidate.name, candidate.version, ANSWERED, same)
    return mute


def _archived(state: State, place: str, arriving: str) -> tuple[Move, ...]:
    """What leaves production is archived; what comes back is not."""
    leaving, archived = state.aliases.get("production", ""), state.aliases.get("archived", "")
    if place != "production" or not leaving:
        return (Move("archived", archived, ""),) if archived == arriving else ()
    return (Move("archived", archived, leaving),) if leaving != archived else ()


def _figures(candidate: ModelVersion, to: str, state: State, tracking_uri: str) -> tuple[tuple[str, float, float | None], ...]:
    """The candidate's figures beside those of the version in place, or else of the one in production."""
    holder = state.aliases.get(to) or state.aliases.get("production")
    theirs = version_of(client_of(tracking_uri), candidate.name, holder).tags if holder else {}
    return figures(candidate.tags.get(RESULTS, "[]"), theirs.get(RESULTS, "[]"))


def _refused(candidate: ModelVersion, to: Place, state: State, shut: list[str], tracking_uri: str) -> Act | None:
    """The refusal as an entry; none where the last word about this version and place was the same."""
    act = Act(
        "refuse",
        candidate.version,
        to,
        gates=tuple(shut),
        figures=_figures(candidate, to, state, tracking_uri),
        weights=candidate.tags.get("weights_digest", ""),
    )
    last = next((one.act for one in reversed(state.entries) if one.act.version == candidate.version), None)
    return None if last == act else act
