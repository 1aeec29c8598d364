"""Instructions: wordings, slices, ids and balance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from components.curation.corpus import Corpus
from components.curation.tables import INSTRUCTIONS, read_arrow
from components.curation.text.instructions import select_balanced, spread
from components.registries import TASKS
from components.tasks.base import has_finding
from model_core.boxes import NO_LESION
from tests.helpers.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_held_out_phrasings_are_never_trained_phrasings() -> None:
    for phrasings in (phrasings for task in TASKS.values() for phrasings in task.all_phrasings):
        assert phrasings.trained and phrasings.held_out and not set(phrasings.trained) & set(phrasings.held_out)


def test_no_slice_is_chosen_twice() -> None:
    """Evenly spaced positions can round to the same slice."""
    for length in range(1, 12):
        for count in range(1, 12):
            chosen = spread(list(range(length)), count)
            assert len(set(chosen)) == len(chosen) and 1 <= len(chosen) <= count


def test_training_uses_no_held_out_phrasing(corpus: Corpus) -> None:
    held_out = {record.split for record in corpus.instructions if record.held_out_phrasing}
    assert held_out and "train" not in held_out


def test_paired_tasks_have_equally_many_instructions_with_and_without_a_finding(corpus: Corpus) -> None:
    paired = {name for name, task in TASKS.items() if task.is_paired}
    counts = Counter((record.task, record.split, has_finding(record)) for record in corpus.instructions if record.task in paired)
    assert {task for task, _, _ in counts} == paired
    assert all(count == counts[task, split, not finding] for (task, split, finding), count in counts.items())


def test_the_order_of_the_candidates_does_not_change_the_selection(corpus: Corpus) -> None:
    """A surplus of findings is dropped by id: shuffled candidates give the same instructions."""
    datasets = {volume_id: volume.dataset_id for volume_id, volume in corpus.volumes.items()}
    kept = [record.task != "detection" or bool(record.boxes) or record.split != "train" for record in corpus.instructions]
    candidates = read_arrow(corpus.root, INSTRUCTIONS).filter(pa.array(kept))
    shuffled = candidates.take(np.random.default_rng(0).permutation(len(candidates)))

    def selected(table: pa.Table) -> set[str]:
        return set(table.filter(pa.array(select_balanced(table, datasets))).column("sample_id").to_pylist())

    assert selected(candidates) == selected(shuffled)
    assert 0 < len(selected(candidates)) < len(candidates)


def test_every_response_has_the_form_of_its_task(corpus: Corpus) -> None:
    for record in corpus.instructions:
        task = TASKS[record.task]
        assert task.is_response(record) and task.is_complete(record, corpus.volumes[record.volume_id])
        if record.response != NO_LESION:
            assert not task.is_response(record.model_copy(update={"response": ""}))
