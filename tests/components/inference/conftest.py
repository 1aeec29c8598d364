"""A tiny corpus and a predictor with an untrained network for it."""

from __future__ import annotations

import numpy as np
import pytest

from components.curation.corpus import Corpus
from components.inference import Predictor
from components.tasks.volumetry import OrganFinding, Volumetry
from tests.helpers.corpora import tiny_corpus
from tests.helpers.trained import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def predictor(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(tiny_model(tmp_path_factory.mktemp("model"), corpus))


@pytest.fixture
def with_volumetry(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """The predictor with a volumetry that tells atrophy of every brain, with a probability of 0.9."""
    atrophy = OrganFinding("atrophy", {"white matter": 0.0}, float(np.log(9)), 0.9, 30, 8)
    monkeypatch.setattr(predictor, "volumetry", Volumetry((atrophy,)))
    return predictor
