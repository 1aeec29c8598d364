"""How far a corpus is from the version of the data that was last accepted, dataset by dataset."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from components.curation.corpus import Corpus

if TYPE_CHECKING:
    import pandas as pd

Profile = dict[str, dict[str, Any]]
"""Dataset -> quantity -> {"count": number of rows, "mix": shares by name} or {"count", "mean", "error"} (of the mean)."""
_MIXES = ("sequences", "field_strengths", "splits", "lesions", "tasks")
_MEANS = ("repetition_time", "echo_time", "age", "intensity_scale", "contrast", "labelled_volume", "text_length")


def profile(corpus: Corpus) -> Profile:
    """What is compared: shares and means of every dataset."""
    values: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for volume in corpus.volumes.values():
        found = values[volume.dataset_id]
        found["volumes"].append(1.0)
        found["sequences"].append(str(volume.sequence))
        found["field_strengths"].append("unknown" if volume.field_strength_t is None else f"{volume.field_strength_t:.1f}")
        found["splits"].append(volume.split)
        found["lesions"].append(str(volume.lesion))
        described = corpus.descriptions.get(volume.volume_id)
        numbers = {
            "repetition_time": volume.repetition_time_ms,
            "echo_time": volume.echo_time_ms,
            "age": volume.age_years,
            "intensity_scale": volume.intensity_scale,
            "contrast": volume.voxel_deviation,
            "labelled_volume": sum(m.volume_ml or 0 for m in described.measures) if described else None,
            "text_length": float(len(described.text)) if described else None,
        }
        for name, number in numbers.items():
            if number is not None and math.isfinite(number) and number > 0:
                found[name].append(number)
    for one in corpus.instructions:
        if one.volume_id in corpus.volumes:
            values[corpus.volumes[one.volume_id].dataset_id]["tasks"].append(one.task)
    return {dataset: _summary(found) for dataset, found in sorted(values.items())}


def _summary(found: dict[str, list[Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"volumes": {"count": len(found["volumes"])}}
    for name in _MIXES:
        made[name] = {"count": len(found[name]), "mix": {k: n / len(found[name]) for k, n in sorted(Counter(found[name]).items())}}
    for name in _MEANS:
        if found[name]:
            made[name] = {"count": len(found[name]), **_mean(found[name])}
    return made


def _mean(numbers: Iterable[float]) -> dict[str, float]:
    """Mean and its standard error, of the logarithms: a change of unit is a shift."""
    logs = [math.log(number) for number in numbers]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / max(len(logs) - 1, 1))
    return {"mean": mean, "error": spread / math.sqrt(len(logs))}


def _difference(name: str, before: dict[str, Any], now: dict[str, Any]) -> float:
    """Distance less two standard errors, 0 at least."""
    if name == "volumes":
        return max(1 - now["count"] / before["count"], 0.0)
    if not before["count"] or not now["count"]:
        return 0.0
    if "mix" in before:
        names = set(before["mix"]) | set(now["mix"])
        distance = sum(abs(before["mix"].get(one, 0.0) - now["mix"].get(one, 0.0)) for one in names) / 2
        return max(distance - 1 / math.sqrt(min(before["count"], now["count"])), 0.0)
    error = math.hypot(before["error"], now["error"])
    return max(abs(before["mean"] - now["mean"]) - 2 * error, 0.0)


def drift(before: Profile, now: Profile) -> pd.DataFrame:
    """One row for each dataset that both versions have, a column for each quantity; None where either does not have it."""
    import pandas as pd

    rows = []
    for dataset in sorted(set(before) & set(now)):
        both = {name for name in before[dataset] if name in now[dataset]}
        found: dict[str, Any] = {name: None for name in ("volumes", *_MIXES, *_MEANS)}
        found |= {name: _difference(name, before[dataset][name], now[dataset][name]) for name in both}
        rows.append({"dataset_id": dataset, **found})
    return pd.DataFrame(rows)
