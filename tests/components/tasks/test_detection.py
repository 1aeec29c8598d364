"""Masks of boxes, and names that the model writes."""

import numpy as np
import pytest

from components.curation.corpus import Corpus
from components.curation.table_rows import BoxRecord, InstructionRecord
from components.tasks.detection import TASK, finding_name
from components.tasks.findings import find_outlines
from model_core.boxes import BOX_TOKEN, GRID
from tests.helpers.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_name_of_a_finding_is_the_models_own_word() -> None:
    assert finding_name(f"{BOX_TOKEN}bone marrow oedema<loc012>") == "bone marrow oedema"
    assert finding_name("<seg>(") == "lesion"


def test_the_target_is_the_labeled_finding_or_its_filled_box(corpus: Corpus) -> None:
    records = [record for record in corpus.instructions if record.task == "detection"]
    record = next(record for record in records if record.boxes)
    labels = corpus.store.read(record.volume_id, "labels", record.slice_index)
    mask = TASK.input_and_target(record, corpus.store)[1].image
    np.testing.assert_array_equal(mask, np.isin(labels, record.label_values))
    boxes_only = record.model_copy(update={"label_values": []})
    filled = TASK.input_and_target(boxes_only, corpus.store)[1].image
    assert (filled >= mask).all() and [one.edges for one in find_outlines(filled, {"lesion": filled}, (8, 8), 1)] == [
        one.edges for one in find_outlines(mask, {"lesion": mask}, (8, 8), 1)
    ]


def test_a_slice_without_a_finding_has_an_empty_target(corpus: Corpus) -> None:
    record = next(one for one in corpus.instructions if one.task == "detection" and not one.boxes)
    assert isinstance(record, InstructionRecord) and record.label_values
    assert not TASK.input_and_target(record, corpus.store)[1].image.any()
    box = BoxRecord(row0=0, col0=0, row1=GRID - 1, col1=GRID - 1, label="lesion")
    everything = record.model_copy(update={"label_values": [], "boxes": [box]})
    assert TASK.input_and_target(everything, corpus.store)[1].image.all()
