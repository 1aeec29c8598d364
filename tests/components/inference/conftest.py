"""A tiny corpus and a predictor with an untrained network for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from components.curation.corpus import Corpus
from components.inference import Predictor
from components.tasks import diagnosis, report
from components.tasks.known_structures import Shown
from components.tasks.volumetry import OrganFinding, Volumetry, measure_shares
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


@pytest.fixture
def measured_grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """The shape and the spacing of every volume whose structures are measured, diagnosis and report alike."""
    grids: list[tuple[tuple[int, ...], tuple[float, ...]]] = []

    def measure(shown: Shown, spacing_mm: Sequence[float]) -> dict[str, float]:
        grids.append((shown.mask.shape, tuple(spacing_mm)))
        return measure_shares(shown, spacing_mm)

    for module in (diagnosis, report):
        monkeypatch.setattr(module, "measure_shares", measure)
    return grids
