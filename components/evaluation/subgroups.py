"""One metric of each task by groups of scans and patients, which a mean over all cases hides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from components.curation.corpus import Corpus
from components.curation.table_rows import VolumeRecord
from components.evaluation.results import SubgroupRow
from components.evaluation.task_result import ScoredUnits

AGES = (40, 60)
"""Limits of the age groups, years."""
UNKNOWN = "not known"


def _age_group(volume: VolumeRecord) -> str:
    if volume.age_years is None:
        return UNKNOWN
    if volume.age_years < AGES[0]:
        return f"below {AGES[0]}"
    if volume.age_years < AGES[1]:
        return f"{AGES[0]} to {AGES[1] - 1}"
    return f"{AGES[1]} and above"


FACTORS: dict[str, Callable[[VolumeRecord], str]] = {
    "vendor": lambda volume: volume.vendor or UNKNOWN,
    "field strength": lambda volume: f"{volume.field_strength_t:.1f} T" if volume.field_strength_t else UNKNOWN,
    "sequence": lambda volume: volume.sequence or UNKNOWN,
    "anatomy": lambda volume: volume.anatomy or UNKNOWN,
    "sex": lambda volume: volume.sex or UNKNOWN,
    "age": _age_group,
    "data": lambda volume: "synthetic" if volume.synthetic else "real",
}


def score_subgroups(task: str, scored: ScoredUnits, corpus: Corpus) -> list[SubgroupRow]:
    """Compute one metric in every group of every factor that has at least two groups, of the model and of the baselines."""
    volumes = scored.volumes
    rows: list[SubgroupRow] = []
    for factor, group_of in FACTORS.items():
        groups: dict[str, list[int]] = defaultdict(list)
        for unit, volume_id in enumerate(volumes):
            groups[group_of(corpus.volumes[volume_id])].append(unit)
        if len(groups) == 1:
            continue
        for group, units in sorted(groups.items()):
            patients = {corpus.volumes[volumes[unit]].patient_id for unit in units}
            baselines = {name: score(units) for name, score in scored.baselines.items()}
            value = scored.score(units)
            rows.append(SubgroupRow(task, scored.metric, factor, group, value, baselines, len(units), len(patients)))
    return rows
