"""Selection of held-out cases: patients of one split, spread evenly over patients, in an order that depends on the seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord, Split
from components.provenance import digest
from components.registries import TASKS
from components.tasks.base import Task

Item = TypeVar("Item")


def select_cases(corpus: Corpus, cases_per_task: int, seed: int) -> dict[str, list[InstructionRecord]]:
    """Return task -> at most ``cases_per_task`` records of the test split, those with held-out phrasings first."""
    return {name: select_task_cases(corpus, name, "test", cases_per_task, seed) for name in TASKS}


def select_task_cases(corpus: Corpus, name: str, split: Split, count: int, seed: int) -> list[InstructionRecord]:
    """Return at most ``count`` records of a task and split, those with held-out phrasings first."""
    by_patient: dict[str, list[InstructionRecord]] = defaultdict(list)
    for record in corpus.instructions:
        if record.split == split and record.task == name:
            by_patient[record.patient_id].append(record)
    rows = [
        sorted(records, key=lambda record: (not record.held_out_phrasing, digest(seed, record.sample_id)))
        for _, records in sorted(by_patient.items())
    ]
    return _balance_groups(TASKS[name], interleave(rows))[:count]


def interleave(rows: Sequence[Sequence[Item]]) -> list[Item]:
    """Take one item of each row in turn until all rows are empty."""
    return [record for turn in zip_longest(*rows) for record in turn if record is not None]


def _balance_groups(task: Task, records: list[InstructionRecord]) -> list[InstructionRecord]:
    """Order the records so that every prefix contains the task's groups in equal numbers, as far as they suffice."""
    groups: dict[object, list[InstructionRecord]] = defaultdict(list)
    for record in records:
        groups[task.case_group(record)].append(record)
    return interleave(list(groups.values()))
