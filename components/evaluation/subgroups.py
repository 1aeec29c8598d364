"""Each task's first metric by groups of scans and people: where a mean hides who pays for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from components.curation.corpus import Corpus
from components.curation.table_rows import VolumeRecord
from components.evaluation.results import SubgroupRow
from components.evaluation.verdicts import Score

AGES = (40, 60)
UNKNOWN = "not known"


def _age(volume: VolumeRecord) -> str:
    if volume.age_years is None:
        return UNKNOWN
    return (
        f"below {AGES[0]}"
        if volume.age_years < AGES[0]
        else f"{AGES[0]} to {AGES[1] - 1}"
        if volume.age_years < AGES[1]
        else (f"{AGES[1]} and above")
    )


FACTORS: dict[str, Callable[[VolumeRecord], str]] = {
    "vendor": lambda volume: volume.vendor or UNKNOWN,
    "field strength": lambda volume: f"{volume.field_strength_t:.1f} T" if volume.field_strength_t else UNKNOWN,
    "sequence": lambda volume: volume.sequence or UNKNOWN,
    "anatomy": lambda volume: volume.anatomy or UNKNOWN,
    "sex": lambda volume: volume.sex or UNKNOWN,
    "age": _age,
    "data": lambda volume: "synthetic" if volume.synthetic else "real",
}


def subgroups(task: str, metric: str, score: Score, volumes: Sequence[str], corpus: Corpus) -> list[SubgroupRow]:
    """One metric in every group of every factor; a factor with one group says nothing and is left out.

    Args:
        volumes: volume_id of every unit that ``score`` counts.
    """
    rows: list[SubgroupRow] = []
    for factor, group_of in FACTORS.items():
        groups: dict[str, list[int]] = defaultdict(list)
        for unit, volume_id in enumerate(volumes):
            groups[group_of(corpus.volumes[volume_id])].append(unit)
        if len(groups) > 1:
            for group, units in sorted(groups.items()):
                patients = {corpus.volumes[volumes[unit]].patient_id for unit in units}
                rows.append(SubgroupRow(task, metric, factor, group, score(units), len(units), len(patients)))
    return rows
