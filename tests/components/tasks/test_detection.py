"""Boxes of a mask, and masks of boxes."""

import numpy as np
import pytest
from scipy import ndimage

from components.curation.corpus import Corpus
from components.curation.table_rows import BoxRecord, InstructionRecord
from components.tasks.detection import TASK, box_components, finding_name
from model_core.boxes import BOX_TOKEN, GRID, TextBox
from tests.helpers.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_boxes_are_those_of_the_connected_parts() -> None:
    """Parts that touch at a corner are one, as in label maps; a part of few pixels does not count."""
    probability = np.zeros((40, 40), np.float32)
    probability[2:6, 3:9] = 0.9
    probability[6:9, 9:12] = 0.7  # touches at a corner
    probability[20:30, 20:24] = 0.6
    probability[35, 35] = 1.0
    first, second = box_components(probability, 6, certain=0.5)
    assert (first.edges, second.edges) == ((2, 3, 9, 12), (20, 20, 30, 24))
    assert (round(first.confidence, 3), round(second.confidence, 3)) == (0.9, 0.6)
    expected = ndimage.find_objects(ndimage.label(probability > 0.5, np.ones((3, 3)))[0])
    assert [first.edges, second.edges] == [(r.start, c.start, r.stop, c.stop) for r, c in expected[:2]]
    assert first.normalize("cyst", (40, 40)) == TextBox("cyst", *(round(edge * GRID / 40) for edge in first.edges))
    assert not box_components(probability * 0.5, 6, certain=0.1)
    assert [one.edges for one in box_components(probability, 6, certain=0.8)] == [first.edges]


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
    assert (filled >= mask).all() and [one.edges for one in box_components(filled, 1)] == [
        one.edges for one in box_components(mask, 1)
    ]


def test_a_slice_without_a_finding_has_an_empty_target(corpus: Corpus) -> None:
    record = next(one for one in corpus.instructions if one.task == "detection" and not one.boxes)
    assert isinstance(record, InstructionRecord) and record.label_values
    assert not TASK.input_and_target(record, corpus.store)[1].image.any()
    box = BoxRecord(row0=0, col0=0, row1=GRID - 1, col1=GRID - 1, label="lesion")
    everything = record.model_copy(update={"label_values": [], "boxes": [box]})
    assert TASK.input_and_target(everything, corpus.store)[1].image.all()
