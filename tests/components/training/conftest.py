"""A tiny corpus and a processor for its texts, shared by the tests of a file."""

from __future__ import annotations

import pytest

from components.curation.corpus import Corpus
from model_core.processing import Processor
from model_core.tokenization import train_tokenizer
from tests.helpers.corpora import tiny_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def processor(corpus: Corpus) -> Processor:
    return Processor(train_tokenizer([description.text for description in corpus.descriptions.values()], 400))
