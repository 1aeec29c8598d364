"""The tiny corpus of the tests is complete and reproducible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.registries import TASKS
from model_core.mri_physics.fourier import ifft2c_numpy
from tests.helpers.corpora import LABEL_MAP, tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


def test_every_split_has_every_task(corpus: Corpus) -> None:
    assert {(record.split, record.task) for record in corpus.instructions} == {
        (split, task) for split in ("train", "validation", "test") for task in TASKS
    }


def test_every_row_refers_to_a_volume_with_arrays_in_the_store(corpus: Corpus) -> None:
    for record in corpus.volumes.values():
        assert corpus.store.read(record.volume_id).shape == (record.slices, record.rows, record.columns)
        assert corpus.store.has(record.volume_id, "kspace") == record.has_kspace
    assert {record.volume_id for record in corpus.instructions} <= set(corpus.volumes) == set(corpus.descriptions)


def test_kspace_and_voxels_agree(corpus: Corpus) -> None:
    record = next(record for record in corpus.volumes.values() if record.has_kspace)
    magnitude = np.abs(ifft2c_numpy(corpus.store.read(record.volume_id, "kspace")))
    np.testing.assert_allclose(magnitude, corpus.store.read(record.volume_id), rtol=2.0**-10, atol=1e-6)


def test_curated_twice_it_has_the_same_digest_and_bytes(corpus: Corpus, tmp_path: Path) -> None:
    again = tiny_corpus(tmp_path)
    assert again.digest == corpus.digest
    for path in sorted(corpus.root.rglob("*.*")):
        assert (tmp_path / path.relative_to(corpus.root)).read_bytes() == path.read_bytes(), path.name


def test_it_returns_the_label_map_of_its_datasets(corpus: Corpus) -> None:
    assert corpus.label_map("tiny-brain") == LABEL_MAP
    with pytest.raises(BadInput, match="not a dataset of this corpus"):
        corpus.label_map("elsewhere")


def test_an_empty_folder_is_not_a_corpus(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no curated corpus"):
        Corpus.open(tmp_path)
