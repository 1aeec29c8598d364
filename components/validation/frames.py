"""The curated tables as data frames, with the columns that expectations need and no table has: what holds *between* tables, cards
and store is computed here, so that each expectation stays one plain statement about one column.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from components.curation.corpus import Corpus
from components.curation.records import InstructionRecord, VolumeRecord
from components.errors import OmniMRIError
from model_core.boxes import GRID

if TYPE_CHECKING:
    import pandas as pd

HEADER_NUMBERS = (
    "repetition_time_ms", "echo_time_ms", "inversion_time_ms", "flip_angle_deg", "field_strength_t", "age_years",
)  # fmt: skip


def frames(corpus: Corpus) -> dict[str, pd.DataFrame]:
    """Table name -> frame."""
    import pandas as pd

    rows: dict[str, list[dict[str, Any]]] = {
        "volumes": [_volume_row(corpus, volume) for volume in corpus.volumes.values()],
        "descriptions": [
            {
                "volume_id": one.volume_id,
                "volume_known": one.volume_id in corpus.volumes,
                "text": one.text,
                "field_texts": _joined(one.fields.values()),
                "provenance_complete": all(one.provenance.get(name, "none") != "none" for name, text in one.fields.items() if text),
            }
            for one in corpus.descriptions.values()
        ],
        "instructions": [_instruction_row(corpus, one) for one in corpus.instructions],
        "splits": [{"patient_id": patient, "split": split} for patient, split in corpus.splits.items()],
    }
    return {name: pd.DataFrame(found) for name, found in rows.items()}


def _joined(texts: Iterable[str | None]) -> str:
    return "\n".join(text for text in texts if text)


def _volume_row(corpus: Corpus, volume: VolumeRecord) -> dict[str, Any]:
    row = volume.model_dump(exclude={"source_files", "affine", "label_values"})
    facts = corpus.summary["datasets"].get(volume.dataset_id)
    known = set(corpus.label_map(volume.dataset_id)) if facts else set()
    header = (value for name in HEADER_NUMBERS if (value := row[name]) is not None)
    row["header_numbers_finite"] = all(math.isfinite(value) for value in header)  # expectations take NaN for missing: passed over
    row["dataset_known"] = facts is not None
    row["synthetic_as_card"] = facts is not None and volume.synthetic == facts["synthetic"]
    row["unknown_label_values"] = len(set(volume.label_values) - known)
    row["header_texts"] = _joined([volume.sequence, volume.plane, volume.anatomy, volume.vendor, volume.scanner])
    row["names"] = _joined([volume.dataset_id, volume.patient_id, volume.series_id, *volume.source_files])
    row["split_of_patient"] = corpus.splits.get(volume.patient_id, "none")
    row["shape_in_store"] = _shapes_agree(corpus, volume)
    row["described"] = volume.volume_id in corpus.descriptions
    return row


def _shapes_agree(corpus: Corpus, volume: VolumeRecord) -> bool:
    """All arrays of the volume are in the store, in the recorded shape; reads headers only."""
    wanted = (volume.slices, volume.rows, volume.columns)
    names = ["voxels", *(["labels"] if volume.has_labels else []), *(["kspace"] if volume.has_kspace else [])]
    try:
        return all(corpus.store.shape(volume.volume_id, name) == wanted for name in names)  # type: ignore[arg-type]
    except OmniMRIError:
        return False


def _instruction_row(corpus: Corpus, one: InstructionRecord) -> dict[str, Any]:
    volume = corpus.volumes.get(one.volume_id)
    return {
        "sample_id": one.sample_id,
        "task": one.task,
        "split": one.split,
        "volume_known": volume is not None,
        "split_of_volume": volume.split if volume else "none",
        "split_of_patient": corpus.splits.get(one.patient_id, "none"),
        "slice_inside": volume is not None and 0 <= one.slice_index < volume.slices,
        "instruction": one.instruction,
        "response": one.response,
        "labels": _joined([one.structure, *(box.label for box in one.boxes)]),
        "structure_as_card": _structure_as_card(corpus, one, volume),
        "boxes_inside": all(0 <= b.row0 < b.row1 < GRID and 0 <= b.col0 < b.col1 < GRID for b in one.boxes),
        "acceleration": one.acceleration,
        "has_what_its_task_needs": _complete(one, volume),
        "held_out_but_trained": one.held_out_phrasing and one.split == "train",
    }


def _structure_as_card(corpus: Corpus, one: InstructionRecord, volume: VolumeRecord | None) -> bool:
    """The structure asked for is what the card calls this label value."""
    if one.label_value is None or volume is None or volume.dataset_id not in corpus.summary["datasets"]:
        return one.label_value is None
    return one.structure == corpus.label_map(volume.dataset_id).get(one.label_value, "").lower()


def _complete(one: InstructionRecord, volume: VolumeRecord | None) -> bool:
    """The fields that the task cannot do without."""
    if volume is None:
        return False
    if one.task == "reconstruction":
        return volume.has_kspace and None not in (one.acceleration, one.centre_fraction, one.mask_seed)
    if one.task == "segmentation":
        return volume.has_labels and one.label_value in volume.label_values
    return one.positive is not None if one.task == "diagnosis" else True
