"""Instructions about volumes and studies, from records and facts alone: no voxel is read.

The tasks decide what can be asked about a volume (:meth:`components.tasks.base.Task.volume_candidates`). An instruction about a
study is one about a volume of it, with all of its series as images: what is asked must name the series, or hold for all of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from components.curation.curate_volume import CuratedVolume
from components.curation.studies import group_studies
from components.curation.table_rows import VolumeInstructionRecord, VolumeRecord
from components.curation.text.phrasings import Phrasings, scan_name
from components.provenance import digest
from components.registries import TASKS

if TYPE_CHECKING:
    from components.tasks.base import Task

MOST_SERIES = 6
"""Largest number of series of a study that is asked about: a sequence of more would exceed what training can hold."""
STUDY = "MRI study"


def build_volume_instruction(
    curated: CuratedVolume, task: Task, response: str, words: dict[str, str], **fields: Any
) -> VolumeInstructionRecord:
    """Build the record of an instruction about a whole volume; phrasing and id follow from the question alone.

    Args:
        words: values of the placeholders of the phrasing, except ``{scan}``.
        fields: further fields of the record.
    """
    record = curated.record
    key = digest(record.dataset_id, record.series_id, "volume", task.name, sorted(words.items()))
    phrasing, held_out = _choose_phrasing(key, record.split, task.phrasings.trained, task.phrasings.held_out)
    return VolumeInstructionRecord(
        sample_id=key[:32],
        volume_id=record.volume_id,
        scope="volume",
        series=[record.volume_id],
        patient_id=record.patient_id,
        split=record.split,
        task=task.name,
        instruction=phrasing.format(scan=scan_name(record.sequence, record.plane, record.anatomy), **words),
        response=response,
        held_out_phrasing=held_out,
        **fields,
    )


def list_study_instructions(
    rows: Iterable[VolumeInstructionRecord], records: Iterable[VolumeRecord]
) -> Iterator[VolumeInstructionRecord]:
    """Yield the instructions about studies of at least two series, given those about volumes.

    A mask, an image and boxes belong to one series, which the instruction names; where two series of the study have the same name
    nothing is asked. A finding and a report are those of the study: a finding is present if any series shows it, and the report is
    that of the series that shows a lesion, or of the first one.
    """
    volumes = {record.volume_id: record for record in records}
    grouped = group_studies(volumes.values())
    studies = {volume_id: series for volume_id, series in grouped.items() if 2 <= len(series) <= MOST_SERIES}
    of_study: dict[tuple[str, str, str], list[VolumeInstructionRecord]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.sample_id):
        if row.volume_id not in studies or row.scope != "volume":
            continue
        series = studies[row.volume_id]
        if TASKS[row.task].names_series:
            if _is_named(volumes[row.volume_id], series):
                yield _about_study(row, series, _scan(volumes[row.volume_id]))
        else:
            of_study[series[0].volume_id, row.task, row.finding or ""].append(row)
    for (first, _, _), answers in of_study.items():
        series = studies[first]
        order = {record.volume_id: number for number, record in enumerate(series)}
        chosen = min(answers, key=lambda row: (not _is_positive(row, volumes), order[row.volume_id]))
        anatomy = volumes[first].anatomy
        yield _about_study(chosen, series, f"{anatomy} {STUDY}" if anatomy else STUDY)


def _is_positive(row: VolumeInstructionRecord, volumes: Mapping[str, VolumeRecord]) -> bool:
    return bool(volumes[row.volume_id].lesion) if row.positive is None else row.positive


def _scan(record: VolumeRecord) -> str:
    return scan_name(record.sequence, record.plane, record.anatomy)


def _is_named(record: VolumeRecord, series: list[VolumeRecord]) -> bool:
    """Return whether the description of a series tells it from all others of its study."""
    return bool(record.sequence) and Counter(map(_scan, series))[_scan(record)] == 1


def _about_study(row: VolumeInstructionRecord, series: list[VolumeRecord], scan: str) -> VolumeInstructionRecord:
    """Return an instruction about a volume as one about its study, in a phrasing that says which scan is meant."""
    words = {"structure": row.structure, "finding": row.finding, "acceleration": row.acceleration}
    phrasings = naming_scan(TASKS[row.task].phrasings)
    key = digest(row.sample_id, "study")
    phrasing, held_out = _choose_phrasing(key, row.split, phrasings.trained, phrasings.held_out)
    filled = {name: str(value) for name, value in words.items() if value is not None}
    update = {
        "sample_id": key[:32],
        "scope": "study",
        "series": [record.volume_id for record in series],
        "instruction": phrasing.format(scan=scan, **filled),
        "held_out_phrasing": held_out,
    }
    return row.model_copy(update=update)


def naming_scan(phrasings: Phrasings) -> Phrasings:
    """Return those phrasings that name the scan."""
    trained, held_out = (tuple(text for text in texts if "{scan}" in text) for texts in (phrasings.trained, phrasings.held_out))
    return Phrasings(trained, held_out, phrasings.key)


def _choose_phrasing(key: str, split: str, trained: tuple[str, ...], held_out: tuple[str, ...]) -> tuple[str, bool]:
    """Return a phrasing, and whether it is excluded from training."""
    allowed = trained if split == "train" else trained + held_out
    phrasing = allowed[int(key[:8], 16) % len(allowed)]
    return phrasing, phrasing in held_out
