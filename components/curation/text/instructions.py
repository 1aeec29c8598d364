"""Instructions about curated volumes, from records and slice facts alone: no voxel is read.

The tasks (:mod:`components.tasks`) decide what can be asked about a volume. This module builds the records and balances them: of
tasks with a finding or none, a corpus has per dataset and split equally many of each, selected by a keyed order, never by position.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from components.curation.curate_volume import CardFacts, CuratedVolume
from components.curation.table_rows import InstructionRecord, VolumeInstructionRecord
from components.curation.text.phrasings import Phrasings, scan_name
from components.provenance import digest
from components.registries import TASKS
from components.settings import CurationSettings

if TYPE_CHECKING:
    from components.tasks.base import Task

IMAGE_RESPONSE, MASK_RESPONSE = "<image>", "<seg>"


def spread(indices: list[int], count: int) -> list[int]:
    """Return at most ``count`` of ``indices``, evenly spaced; all of them if there are no more."""
    if len(indices) <= count:
        return list(indices)
    positions = np.linspace(0, len(indices) - 1, count + 2)[1:-1] if count > 1 else [(len(indices) - 1) / 2]
    return [indices[position] for position in dict.fromkeys(round(float(position)) for position in positions)]


def build_instruction(
    curated: CuratedVolume,
    task: Task,
    slice_index: int,
    response: str,
    words: dict[str, str],
    phrasings: Phrasings | None = None,
    **fields: Any,
) -> InstructionRecord:
    """Build the record of an instruction about one slice.

    Phrasing and id follow from the content of the question, so that they are the same at every curation. The id does not depend on
    the volume id, which changes with the code: evaluations compare the same questions.

    Args:
        words: values of the placeholders of the phrasing, except ``{scan}``.
        phrasings: wordings to choose from; None = those of the task.
        fields: further fields of the record.
    """
    record = curated.record
    phrasings = phrasings or task.phrasings
    variant = [phrasings.key] if phrasings.key else []
    key = digest(record.dataset_id, record.series_id, slice_index, task.name, sorted(words.items()), *variant)
    allowed = phrasings.trained if record.split == "train" else phrasings.trained + phrasings.held_out
    phrasing = allowed[int(key[:8], 16) % len(allowed)]
    scan = scan_name(record.sequence, record.plane, record.anatomy)
    return InstructionRecord(
        sample_id=key[:32],
        volume_id=record.volume_id,
        patient_id=record.patient_id,
        split=record.split,
        task=task.name,
        slice_index=slice_index,
        instruction=phrasing.format(scan=scan, **words),
        response=response,
        held_out_phrasing=phrasing in phrasings.held_out,
        **fields,
    )


def list_candidates(curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> list[InstructionRecord]:
    """Return every instruction about a volume whose record has its split; :func:`select_balanced` selects those of the corpus."""
    return [record for task in TASKS.values() for record in task.candidates(curated, card, settings)]


def list_volume_candidates(curated: CuratedVolume, card: CardFacts, settings: CurationSettings) -> list[VolumeInstructionRecord]:
    """Return every instruction about a volume as a whole, whose record has its split."""
    return [record for task in TASKS.values() for record in task.volume_candidates(curated, card, settings)]


def select_balanced(candidates: pa.Table, datasets: dict[str, str]) -> NDArray[np.bool_]:
    """Return a mask of the candidates that the corpus includes: of paired tasks as many with a finding as without, else all.

    Balance holds per dataset, split and task. The surplus is dropped in the order of the ids, which is a keyed order, never one by
    position.

    Args:
        candidates: rows of the instructions' schema.
        datasets: volume_id -> dataset_id.
    """
    task = candidates.column("task").to_numpy(zero_copy_only=False)
    paired = np.flatnonzero(np.isin(task, [name for name, one in TASKS.items() if one.is_paired]))
    included = np.ones(len(task), np.bool_)
    included[paired] = False
    rows = candidates.select(["sample_id", "volume_id", "split", "task", "boxes", "positive"]).take(paired)
    has_finding = (pc.list_value_length(rows.column("boxes")).to_numpy() > 0) | pc.fill_null(
        rows.column("positive"), False
    ).to_numpy(zero_copy_only=False)
    groups: dict[tuple[str, str, str], tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    names = (rows.column(name).to_pylist() for name in ("volume_id", "split", "task"))
    keys = [(datasets[volume], split, kind) for volume, split, kind in zip(*names, strict=True)]
    for row in pc.sort_indices(rows.column("sample_id")).to_pylist():
        groups[keys[row]][bool(has_finding[row])].append(row)
    for without_finding, with_finding in groups.values():
        count = min(len(without_finding), len(with_finding))
        included[paired[without_finding[:count] + with_finding[:count]]] = True
    return included
