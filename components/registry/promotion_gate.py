"""What must hold before a version may be promoted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from components.registry.model_version import NEEDED, ModelVersion
from components.settings import TASKS, RegistrySettings

CASES = "evaluation_cases"
"""Tag with the digest of the evaluation's list of cases."""
RESULTS = "results"
"""Tag with the evaluation's rows: ``[[task, metric, higher_is_better, value], ...]``."""


def gate(candidate: ModelVersion, incumbents: Mapping[str, ModelVersion], to: str, settings: RegistrySettings) -> list[str]:
    """Reasons against a promotion that the records alone give; none means that this gate is open.

    Args:
        incumbents: place -> version that holds it now; the candidate is held against the one in ``to`` and the one in production.
        to: ``"staging"`` or ``"production"``.
    """
    reasons = [f"lineage: {name} is missing" for name in NEEDED if not candidate.tags.get(name)]
    commit = candidate.tags.get("git_commit", "")
    if commit == "unknown":
        reasons.append("lineage: the code has no git commit")
    if to == "production" and commit.endswith("+dirty"):
        reasons.append("lineage: the code had changes that no commit holds")
    if candidate.tags.get("validation_passed") != "True":
        reasons.append("validation: the corpus did not pass its expectations")
    if to == "production" and "staging" not in candidate.aliases:
        reasons.append("order: only the staging version can become production")
    ours = results(candidate)
    if not ours:
        return [*reasons, "evaluation: the version has none"]
    measured = {name.partition("/")[0] for name in ours}
    reasons += [f"evaluation: {task} was not measured" for task in TASKS if task not in measured]
    reasons += [f"evaluation: {name} is not a number" for name, (_, value) in ours.items() if not math.isfinite(value)]
    compared: set[str] = {candidate.version}
    for place in dict.fromkeys((to, "production")):
        incumbent = incumbents.get(place)
        if incumbent is None or incumbent.version in compared:
            continue
        compared.add(incumbent.version)
        worse = _worse(ours, results(incumbent), settings, f"{place} version {incumbent.version}")
        if worse and candidate.tags.get(CASES) != incumbent.tags.get(CASES):
            reasons.append(
                f"evaluation: {place} version {incumbent.version} was asked other cases, which may be all of what follows"
            )
        reasons += worse
    return reasons


def figures(ours: str, theirs: str = "[]") -> tuple[tuple[str, float, float | None], ...]:
    """Two versions' ``results`` beside each other: (metric, value, the other's value)."""
    before = {f"{task}/{metric}": value for task, metric, _, value in json.loads(theirs)}
    return tuple((name := f"{task}/{metric}", value, before.get(name)) for task, metric, _, value in json.loads(ours))


def results(version: ModelVersion) -> dict[str, tuple[bool, float]]:
    """``"task/metric"`` -> (higher is better, value)."""
    return {f"{task}/{metric}": (higher, value) for task, metric, higher, value in json.loads(version.tags.get(RESULTS, "[]"))}


def _worse(
    ours: dict[str, tuple[bool, float]], theirs: dict[str, tuple[bool, float]], settings: RegistrySettings, name: str
) -> list[str]:
    """Metrics that fall behind by more than the tolerance of their task, relative to the incumbent's value."""
    reasons = []
    for metric, (higher, before) in theirs.items():
        if metric not in ours:
            reasons.append(f"evaluation: {metric} was measured for {name} and is not here")
            continue
        allowed = settings.tolerance_of(metric.partition("/")[0]) * abs(before)
        loss = (before - ours[metric][1]) * (1 if higher else -1)
        if loss > allowed:
            reasons.append(
                f"{metric}: {ours[metric][1]:.4f} is worse than {before:.4f} of {name} by {loss:.4f}, "
                f"more than the tolerance of {allowed:.4f}"
            )
    return reasons
