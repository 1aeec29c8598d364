"""Promotion, forced promotion and rollback of versions. Every attempt is recorded in the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from components.errors import BadInput, GateRefused, OmniMRIError
from components.model_files import loadable_address, resolve_model
from components.provenance import code_digest, digest, file_md5
from components.registry.audit_entries import Action, AuditState, Entry, Move, alias_stack
from components.registry.model_version import LOCK, ModelVersion
from components.registry.promotion_gate import RESULTS, compare_results, gate_failures
from components.registry.registration import (
    PACKAGES,
    audit_log_of,
    complete_registration,
    get_version,
    list_models,
    list_versions,
    mlflow_client,
    show_version,
)
from components.registry.smoke_test import failure_reason
from components.settings import RegistrySettings

if TYPE_CHECKING:
    from mlflow import MlflowClient

Place = Literal["staging", "production"]
SMOKE_TESTED = "answered"
"""Tag of a version that passed its smoke test: digest of weights, code and packages."""


def refusal(candidate: ModelVersion, to: Place, tracking_uri: str, settings: RegistrySettings) -> str:
    """Return why the gates refuse a version, and record the refusal. Empty: they are open, or the version has the alias."""
    if to in candidate.aliases:
        return ""
    blockers: list[str] = []

    def decide(state: AuditState) -> Action | None:
        blockers[:] = promotion_blockers(candidate, to, state, tracking_uri, settings)
        return _refusal(candidate, to, state, blockers, tracking_uri) if blockers else None

    audit_log_of(tracking_uri, settings.name).write(decide)
    return "; ".join(blockers)


def promote(
    version: str, to: Place, tracking_uri: str, settings: RegistrySettings, reason: str = "", force: bool = False
) -> ModelVersion:
    """Give a version the alias ``to`` if all gates are open, or if forced.

    The version that leaves production becomes ``archived``.

    Args:
        reason: text for the audit log; required for a forced promotion.

    Raises:
        BadInput: no such version, or force without a reason.
        GateRefused: lists every closed gate and by how much it is missed.
    """
    if force and not reason.strip():
        raise BadInput("a forced promotion needs a reason", where="--force", remedy="add --reason TEXT")
    name = settings.name
    candidate = complete_registration(show_version(version, tracking_uri, name), tracking_uri)
    client, audit_log = mlflow_client(tracking_uri), audit_log_of(tracking_uri, name)
    blockers: list[str] = []

    def decide(state: AuditState) -> Action | None:
        current = get_version(client, name, candidate.version)
        incumbent = state.aliases.get(to, "")
        if incumbent == current.version:
            return None
        blockers[:] = promotion_blockers(current, to, state, tracking_uri, settings)
        if blockers and not force:
            return _refusal(current, to, state, blockers, tracking_uri)
        moves = (Move(to, incumbent, current.version), *_archive_moves(state, to, current.version))
        return Action(
            "force" if blockers else "promote",
            current.version,
            to,
            moves,
            reason.strip(),
            tuple(blockers),
            _figures(current, to, state, tracking_uri),
            current.tags.get("weights_digest", ""),
        )

    audit_log.write(decide)
    if blockers and not force:
        raise GateRefused(
            "; ".join(blockers),
            where=f"{name} version {candidate.version} to {to}",
            remedy="train or evaluate again; --force --reason TEXT promotes anyway, and is recorded",
        )
    return get_version(client, name, candidate.version)


def rollback(place: Place, tracking_uri: str, settings: RegistrySettings, reason: str) -> ModelVersion:
    """Give an alias back to the version that had it before. The only gate: that version's weights must be unchanged.

    Raises:
        BadInput: no reason, or no earlier version.
        GateRefused: the earlier version's weights have changed.
    """
    if not reason.strip():
        raise BadInput("a rollback needs a reason", where="--reason", remedy="add --reason TEXT")
    name = settings.name
    show_version(place, tracking_uri, name)
    client = mlflow_client(tracking_uri)

    def decide(state: AuditState) -> Action:
        stack = alias_stack(state.entries, place)
        if len(stack) < 2:
            raise BadInput(
                f"no earlier {place} version to roll back to", where=name, remedy="omnimri history lists the earlier versions"
            )
        leaving, earlier = stack[-1], _earlier_version(client, name, stack[-2], place)
        if changed := _weights_changed(earlier, tracking_uri):
            raise GateRefused(changed, where=f"{name} version {earlier.version}", remedy="restore its files, or promote another")
        moves = (Move(place, leaving, earlier.version), *_archive_moves(state, place, earlier.version))
        figures, weights = _figures(earlier, place, state, tracking_uri), earlier.tags.get("weights_digest", "")
        return Action("rollback", earlier.version, place, moves, reason.strip(), figures=figures, weights=weights)

    state = audit_log_of(tracking_uri, name).write(decide)
    return get_version(client, name, state.aliases[place])


def _earlier_version(client: MlflowClient, name: str, number: str, place: str) -> ModelVersion:
    """Return the version that an alias had before.

    Raises:
        BadInput: it was deleted outside of OmniMRI.
    """
    try:
        return get_version(client, name, number)
    except BadInput:
        remedy = f"omnimri models promote VERSION --to {place} gives it to another version"
        raise BadInput(f"the earlier {place} version was deleted", where=f"{name} {number}", remedy=remedy) from None


def history(tracking_uri: str, name: str) -> tuple[tuple[Entry, ...], list[str]]:
    """Return all entries of the audit log, and its faults: entries changed or missing, aliases moved with other tools.

    Raises:
        BadInput: the model was never registered.
        JobFailed: it was renamed outside of OmniMRI.
    """
    if not list_versions(tracking_uri, name) and name not in list_models(tracking_uri):  # or all its versions were deleted
        raise BadInput("no such model", where=name, remedy="omnimri run registers one")
    state = audit_log_of(tracking_uri, name).read()
    outside = [
        f"history: {move.place} was moved from {move.before or 'none'} to {move.after or 'none'} outside of OmniMRI"
        for move in state.moved_outside
    ]
    return state.entries, [*state.faults, *outside]


def promotion_blockers(
    candidate: ModelVersion, to: Place, state: AuditState, tracking_uri: str, settings: RegistrySettings
) -> list[str]:
    """Return all reasons against a promotion: audit log, tags, weights, and the smoke test."""
    client = mlflow_client(tracking_uri)
    incumbents = {place: get_version(client, settings.name, number) for place, number in state.aliases.items()}
    blockers = [*state.faults, *gate_failures(candidate, incumbents, to, settings)]
    if changed := _weights_changed(candidate, tracking_uri):
        return [*blockers, changed]
    if failure := _smoke_test(candidate, tracking_uri):
        blockers.append(f"smoke test: {failure}")
    return blockers


def _uri(version: ModelVersion) -> str:
    return f"models:/{version.name}/{version.version}"


def _weights_changed(version: ModelVersion, tracking_uri: str) -> str:
    try:
        resolve_model(_uri(version), tracking_uri)
    except OmniMRIError as error:
        return f"weights: {error.what}"
    return ""


def _smoke_test(candidate: ModelVersion, tracking_uri: str) -> str:
    """Return why the smoke test failed, or "". A pass counts for every version with the same weights, code and packages."""
    client = mlflow_client(tracking_uri)
    identity = digest(candidate.tags.get("weights_digest"), code_digest(*PACKAGES), file_md5(LOCK) if LOCK.exists() else "")
    if any(version.tags.get(SMOKE_TESTED) == identity for version in list_versions(tracking_uri, candidate.name)):
        return ""
    with loadable_address(_uri(candidate), tracking_uri) as address:
        failure = failure_reason(address, tracking_uri)
    if not failure:
        client.set_model_version_tag(candidate.name, candidate.version, SMOKE_TESTED, identity)
    return failure


def _archive_moves(state: AuditState, place: str, arriving: str) -> tuple[Move, ...]:
    """Return the moves of ``archived``: the version that leaves production gets it, one that returns loses it."""
    leaving, archived = state.aliases.get("production", ""), state.aliases.get("archived", "")
    if place != "production" or not leaving:
        return (Move("archived", archived, ""),) if archived == arriving else ()
    return (Move("archived", archived, leaving),) if leaving != archived else ()


def _figures(candidate: ModelVersion, to: str, state: AuditState, tracking_uri: str) -> tuple[tuple[str, float, float | None], ...]:
    """Compare the candidate's metrics with those of the incumbent, else of the production version."""
    holder = state.aliases.get(to) or state.aliases.get("production")
    theirs = get_version(mlflow_client(tracking_uri), candidate.name, holder).tags if holder else {}
    return compare_results(candidate.tags.get(RESULTS, "[]"), theirs.get(RESULTS, "[]"))


def _refusal(candidate: ModelVersion, to: Place, state: AuditState, blockers: list[str], tracking_uri: str) -> Action | None:
    """Return the refusal as an action; None if the last entry about this version is the same refusal."""
    refusal_action = Action(
        "refuse",
        candidate.version,
        to,
        gates=tuple(blockers),
        figures=_figures(candidate, to, state, tracking_uri),
        weights=candidate.tags.get("weights_digest", ""),
    )
    last = next((entry.act for entry in reversed(state.entries) if entry.act.version == candidate.version), None)
    return None if last == refusal_action else refusal_action
