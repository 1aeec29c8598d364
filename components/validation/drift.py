"""Measure how far a corpus differs from the last accepted version of the data, dataset by dataset."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from components.curation.corpus import Corpus
from components.curation.table_rows import DescriptionRecord, VolumeRecord

if TYPE_CHECKING:
    import pandas as pd

Profile = dict[str, dict[str, Any]]
"""Dataset -> quantity -> {"count": number of rows, "mix": shares by name} or {"count", "mean", "error"} (of the mean)."""
_MIXES = ("sequences", "field_strengths", "splits", "lesions", "tasks")
_MEANS = ("repetition_time", "echo_time", "age", "intensity_scale", "contrast", "labelled_volume", "text_length")


def profile_corpus(corpus: Corpus) -> Profile:
    """Compute the quantities that are compared: shares and means of every dataset."""
    values: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for volume in corpus.volumes.values():
        quantities = values[volume.dataset_id]
        quantities["volumes"].append(1.0)
        quantities["sequences"].append(str(volume.sequence))
        quantities["field_strengths"].append("unknown" if volume.field_strength_t is None else f"{volume.field_strength_t:.1f}")
        quantities["splits"].append(volume.split)
        quantities["lesions"].append(str(volume.lesion))
        for name, number in _numbers(volume, corpus.descriptions.get(volume.volume_id)).items():
            if number is not None and math.isfinite(number) and number > 0:
                quantities[name].append(number)
    for instruction in corpus.instructions:
        if instruction.volume_id in corpus.volumes:
            values[corpus.volumes[instruction.volume_id].dataset_id]["tasks"].append(instruction.task)
    return {dataset: _summarize(quantities) for dataset, quantities in sorted(values.items())}


def _numbers(volume: VolumeRecord, description: DescriptionRecord | None) -> dict[str, float | None]:
    """Return the numeric quantities of a volume; None = unknown."""
    return {
        "repetition_time": volume.repetition_time_ms,
        "echo_time": volume.echo_time_ms,
        "age": volume.age_years,
        "intensity_scale": volume.intensity_scale,
        "contrast": volume.voxel_deviation,
        "labelled_volume": sum(measure.volume_ml or 0 for measure in description.measures) if description else None,
        "text_length": float(len(description.text)) if description else None,
    }


def _summarize(quantities: dict[str, list[Any]]) -> dict[str, Any]:
    """Summarize the values of one dataset as counts, shares and means."""
    summary: dict[str, Any] = {"volumes": {"count": len(quantities["volumes"])}}
    for name in _MIXES:
        total = len(quantities[name])
        shares = {value: count / total for value, count in sorted(Counter(quantities[name]).items())}
        summary[name] = {"count": total, "mix": shares}
    for name in _MEANS:
        if quantities[name]:
            summary[name] = {"count": len(quantities[name]), **_log_mean(quantities[name])}
    return summary


def _log_mean(numbers: Iterable[float]) -> dict[str, float]:
    """Compute the mean of the logarithms and its standard error: a change of unit becomes a shift."""
    logs = [math.log(number) for number in numbers]
    mean = sum(logs) / len(logs)
    deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / max(len(logs) - 1, 1))
    return {"mean": mean, "error": deviation / math.sqrt(len(logs))}


def _difference(name: str, before: dict[str, Any], now: dict[str, Any]) -> float:
    """Return the distance of two summaries less two standard errors, at least 0."""
    if name == "volumes":
        return max(1 - now["count"] / before["count"], 0.0)
    if not before["count"] or not now["count"]:
        return 0.0
    if "mix" in before:
        values = set(before["mix"]) | set(now["mix"])
        distance = sum(abs(before["mix"].get(value, 0.0) - now["mix"].get(value, 0.0)) for value in values) / 2
        return max(distance - 1 / math.sqrt(min(before["count"], now["count"])), 0.0)
    error = math.hypot(before["error"], now["error"])
    return max(abs(before["mean"] - now["mean"]) - 2 * error, 0.0)


def measure_drift(before: Profile, now: Profile) -> pd.DataFrame:
    """Return one row for each dataset in both profiles, one column for each quantity; None if either profile does not have it."""
    import pandas as pd

    rows = []
    for dataset in sorted(set(before) & set(now)):
        row: dict[str, Any] = {"dataset_id": dataset, **dict.fromkeys(("volumes", *_MIXES, *_MEANS))}
        common = {name for name in before[dataset] if name in now[dataset]}
        row |= {name: _difference(name, before[dataset][name], now[dataset][name]) for name in common}
        rows.append(row)
    return pd.DataFrame(rows)
