"""Images of a corpus that decide whether another image is familiar: one plain and one undersampled slice of every volume."""

from __future__ import annotations

from collections.abc import Sequence

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, Split
from components.evaluation.model_answers import load_cases
from components.inference.familiarity import FamiliarImages, encode
from components.provenance import digest
from components.registries import TASKS
from model_core import OmniMRIForConditionalGeneration
from model_core.targets import TARGET_IMAGE

IMAGES = 512
"""Largest number of images of a split."""


def measure_familiarity(model: OmniMRIForConditionalGeneration, corpus: Corpus) -> FamiliarImages | None:
    """Return the training images in the features of a model, with the threshold of validation patients; None without any."""
    train, validation, test = (select_slices(corpus, split) for split in ("train", "validation", "test"))
    if not train:
        return None
    features = [encode(model, [case.image for case in load_cases(corpus, records)]) for records in (train, validation, test)]
    shown = [[(corpus.volumes[record.volume_id].anatomy or "").lower() for record in records] for records in (train, test)]
    return FamiliarImages.fit(*features).with_anatomies(shown[0], shown[1], features[-1])


def select_slices(corpus: Corpus, split: Split) -> Sequence[InstructionRecord]:
    """Return the instructions about the middle slices of the volumes of a split, with and without undersampling."""
    by_input: dict[tuple[str, bool], list[InstructionRecord]] = {}
    for record in corpus.instructions:
        if record.split == split:
            by_input.setdefault((record.volume_id, TASKS[record.task].target_kind == TARGET_IMAGE), []).append(record)
    chosen = [sorted(records, key=lambda one: (one.slice_index, one.sample_id))[len(records) // 2] for records in by_input.values()]
    return sorted(chosen, key=lambda record: digest("familiarity", record.sample_id))[:IMAGES]
