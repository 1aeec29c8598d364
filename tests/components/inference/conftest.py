"""A tiny corpus and a predictor with an untrained network for it."""

from __future__ import annotations

import pytest

from components.curation.corpus import Corpus
from components.inference import Predictor
from tests.helpers.corpora import tiny_corpus
from tests.helpers.trained import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def predictor(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(tiny_model(tmp_path_factory.mktemp("model"), corpus))
