"""Gates of a promotion that depend on recorded tags alone: lineage, validation, order, and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from components.registries import TASKS
from components.registry.model_version import REQUIRED_TAGS, ModelVersion
from components.settings import RegistrySettings

CASES = "evaluation_cases"
"""Tag: digest of the evaluated cases."""
RESULTS = "results"
"""Tag: rows of the evaluation, ``[[task, metric, higher_is_better, value], ...]``."""


def gate_failures(
    candidate: ModelVersion, incumbents: Mapping[str, ModelVersion], to: str, settings: RegistrySettings
) -> list[str]:
    """Return the reasons against a promotion; an empty list means that the gates are open.

    Args:
        incumbents: alias -> version that has it now; the candidate is compared with those of ``to`` and of production.
        to: ``"staging"`` or ``"production"``.
    """
    reasons = [f"lineage: {name} is missing" for name in REQUIRED_TAGS if not candidate.tags.get(name)]
    commit = candidate.tags.get("git_commit", "")
    if commit == "unknown":
        reasons.append("lineage: the code has no git commit")
    if to == "production" and commit.endswith("+dirty"):
        reasons.append("lineage: the code had uncommitted changes")
    if candidate.tags.get("validation_passed") != "True":
        reasons.append("validation: the corpus did not pass its expectations")
    if to == "production" and "staging" not in candidate.aliases:
        reasons.append("order: only the staging version can become production")
    ours = results(candidate)
    if not ours:
        return [*reasons, "evaluation: the version has not been evaluated"]
    measured = {name.partition("/")[0] for name in ours}
    reasons += [f"evaluation: {task} was not measured" for task in TASKS if task not in measured]
    reasons += [f"evaluation: {name} is not a number" for name, (_, value) in ours.items() if not math.isfinite(value)]
    compared: set[str] = {candidate.version}
    for place in dict.fromkeys((to, "production")):
        incumbent = incumbents.get(place)
        if incumbent is None or incumbent.version in compared:
            continue
        compared.add(incumbent.version)
        regressions = _regressions(ours, results(incumbent), settings, f"{place} version {incumbent.version}")
        if regressions and candidate.tags.get(CASES) != incumbent.tags.get(CASES):
            reasons.append(
                f"evaluation: {place} version {incumbent.version} was evaluated on other cases, which may explain what follows"
            )
        reasons += regressions
    return reasons


def compare_results(ours: str, theirs: str = "[]") -> tuple[tuple[str, float, float | None], ...]:
    """Return (metric, our value, their value or None) of the ``results`` tags of two versions."""
    other = {f"{task}/{metric}": value for task, metric, _, value in json.loads(theirs)}
    return tuple((name := f"{task}/{metric}", value, other.get(name)) for task, metric, _, value in json.loads(ours))


def results(version: ModelVersion) -> dict[str, tuple[bool, float]]:
    """Return ``"task/metric"`` -> (higher is better, value)."""
    return {f"{task}/{metric}": (higher, value) for task, metric, higher, value in json.loads(version.tags.get(RESULTS, "[]"))}


def _regressions(
    ours: dict[str, tuple[bool, float]], theirs: dict[str, tuple[bool, float]], settings: RegistrySettings, name: str
) -> list[str]:
    """Return the metrics that are worse by more than the tolerance of their task, relative to the incumbent's value."""
    reasons = []
    for metric, (higher, incumbent) in theirs.items():
        if metric not in ours:
            reasons.append(f"evaluation: {metric} was measured for {name} but not for this version")
            continue
        allowed = settings.tolerance_of(metric.partition("/")[0]) * abs(incumbent)
        loss = (incumbent - ours[metric][1]) * (1 if higher else -1)
        if loss > allowed:
            reasons.append(
                f"{metric}: {ours[metric][1]:.4f} is worse than {incumbent:.4f} of {name} by {loss:.4f}, "
                f"more than the tolerance of {allowed:.4f}"
            )
    return reasons
