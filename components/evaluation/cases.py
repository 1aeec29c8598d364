"""The frozen list of held-out cases: test patients only, spread evenly over patients, in an order that the seed decides."""

from __future__ import annotations

from collections import defaultdict
from itertools import zip_longest

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.provenance import digest
from components.settings import TASKS


def choose(corpus: Corpus, cases_per_task: int, seed: int) -> dict[str, list[InstructionRecord]]:
    """Task -> at most ``cases_per_task`` records of the test split. Phrasings that were never trained come first."""
    chosen: dict[str, list[InstructionRecord]] = {}
    for task in TASKS:
        by_patient: dict[str, list[InstructionRecord]] = defaultdict(list)
        for record in corpus.instructions:
            if record.split == "test" and record.task == task:
                by_patient[record.patient_id].append(record)
        rows = [
            sorted(records, key=lambda one: (not one.held_out_phrasing, digest(seed, one.sample_id)))
            for _, records in sorted(by_patient.items())
        ]
        in_turn = [record for turn in zip_longest(*rows) for record in turn if record is not None]
        chosen[task] = _balanced(in_turn, cases_per_task)
    return chosen


def _balanced(records: list[InstructionRecord], count: int) -> list[InstructionRecord]:
    """The first ``count``; of yes-or-no questions half and half, of structures equally many each, as far as they go."""
    groups: dict[object, list[InstructionRecord]] = defaultdict(list)
    for record in records:
        kind = (
            record.structure
            if record.task == "segmentation"
            else bool(record.boxes)
            if record.task == "detection"
            else record.positive
        )
        groups[kind].append(record)
    in_turn = [record for turn in zip_longest(*groups.values()) for record in turn if record is not None]
    return in_turn[:count]
