"""What must hold before a version may be promoted."""

from __future__ import annotations

import json
import math

from components.registry.records import NEEDED, ModelVersion
from components.settings import TASKS, RegistrySettings

CASES = "evaluation_cases"
"""Tag with the digest of the evaluation's list of cases."""
RESULTS = "results"
"""Tag with the evaluation's rows: ``[[task, metric, higher_is_better, value], ...]``."""


def gate(candidate: ModelVersion, incumbent: ModelVersion | None, to: str, settings: RegistrySettings) -> list[str]:
    """Reasons against a promotion; none means that the gate is open.

    Args:
        incumbent: the version that holds the place now; None where nobody does.
        to: ``"staging"`` or ``"production"``.
    """
    reasons = [f"lineage: {name} is missing" for name in NEEDED if not candidate.tags.get(name)]
    if candidate.tags.get("git_commit") == "unknown":
        reasons.append("lineage: the code has no git commit")
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
    if incumbent is not None and incumbent.version != candidate.version:
        worse = _worse(ours, results(incumbent), settings.tolerance, f"{to} version {incumbent.version}")
        if worse and candidate.tags.get(CASES) != incumbent.tags.get(CASES):
            reasons.append(f"evaluation: {to} version {incumbent.version} was asked other cases, which may be all of what follows")
        reasons += worse
    return reasons


def results(version: ModelVersion) -> dict[str, tuple[bool, float]]:
    """``"task/metric"`` -> (higher is better, value)."""
    return {f"{task}/{metric}": (higher, value) for task, metric, higher, value in json.loads(version.tags.get(RESULTS, "[]"))}


def _worse(
    ours: dict[str, tuple[bool, float]], theirs: dict[str, tuple[bool, float]], tolerance: float, name: str
) -> list[str]:  # fmt: skip
    """Metrics that fall behind by more than the tolerance, relative to the incumbent's value."""
    reasons = []
    for metric, (higher, before) in theirs.items():
        if metric not in ours:
            reasons.append(f"evaluation: {metric} was measured for {name} and is not here")
            continue
        loss = (before - ours[metric][1]) * (1 if higher else -1)
        if loss > tolerance * abs(before):
            reasons.append(f"{metric}: {ours[metric][1]:.4f} is worse than {before:.4f} of {name} by {loss:.4f}, "
                           f"more than the tolerance of {tolerance * abs(before):.4f}")  # fmt: skip
    return reasons
