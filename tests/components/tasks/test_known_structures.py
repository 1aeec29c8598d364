"""Structures that a model knows, and their probabilities, beside SciPy's softmax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from components.files import write_json
from components.model_files import PREPROCESSING
from components.tasks.kind_weights import SPECIFIC
from components.tasks.known_structures import KnownStructures, LabelMap
from tests.helpers.corpora import tiny_corpus

BRAIN, LESIONS = LabelMap("brain", ("grey matter", "lesion", "white matter")), LabelMap("brain", ("lesion",))
KNEE = LabelMap("knee", ("meniscus",))


def test_structures_compete_within_a_label_map_alone() -> None:
    known = KnownStructures((BRAIN, LESIONS))
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    probabilities = known.probabilities(known.names, logits)
    both = softmax(np.concatenate([np.zeros_like(logits[:, :1]), logits], 1), axis=1)[:, 1:]
    alone = softmax(np.stack([np.zeros_like(logits[:, 1]), logits[:, 1]], 1), axis=1)[:, 1]
    np.testing.assert_allclose(probabilities["white matter"], both[:, 2], rtol=1e-5)
    np.testing.assert_allclose(probabilities["lesion"], (both[:, 1] + alone) / 2, rtol=1e-5)


@given(weight=st.floats(0.01, 100.0), seed=st.integers(0, 99))
def test_weights_of_kinds_change_what_findings_are_called_and_not_how_probable_one_is(weight: float, seed: int) -> None:
    findings = ("edema", "lesion", "tumor")
    known = KnownStructures((LabelMap("brain", (*findings, "white matter")),), dict.fromkeys(("lesion", "tumor"), 1.0))
    logits = np.random.default_rng(seed).normal(size=(1, 4, 3, 3)).astype(np.float32)
    plain = known.probabilities(known.names, logits)
    weighed = replace(known, kind_weights={"lesion": 1.0, "tumor": weight}).probabilities(known.names, logits)
    np.testing.assert_array_equal(weighed["white matter"], plain["white matter"])
    np.testing.assert_allclose(*(np.sum([p[name] for name in findings], axis=0) for p in (weighed, plain)), rtol=1e-5)
    for name in ("edema", "tumor"):
        np.testing.assert_allclose(weighed[name] / weighed["lesion"], weight * plain[name] / plain["lesion"], rtol=1e-4)


def test_without_fitted_weights_a_name_of_its_own_counts_more_than_lesion() -> None:
    known = KnownStructures((LabelMap("brain", ("lesion", "tumor")),))
    even = known.probabilities(known.names, np.zeros((1, 2, 1, 1), np.float32))
    assert even["tumor"].item() == pytest.approx(SPECIFIC * even["lesion"].item())
    assert known.in_anatomy("brain").kinds == {"lesion": ["lesion"], "tumor": ["tumor"]}


def test_large_logits_stay_finite() -> None:
    known = KnownStructures((BRAIN,))
    logits = np.full((1, 3, 1, 2), -500, np.float32)
    logits[0, 1, 0, 1] = 500
    assert [p[0, 0].tolist() for p in known.probabilities(known.names, logits).values()] == [[0, 0], [0, 1], [0, 0]]


def test_header_or_question_choose_the_anatomy() -> None:
    known = KnownStructures((BRAIN, KNEE))
    assert known.in_anatomy(None, "Segment the meniscus in this coronal knee MRI.").names == ("meniscus",)
    assert known.in_anatomy("brain", "Find any lesion.").names == BRAIN.names
    assert known.in_anatomy(None, "Find any lesion.") == known
    assert known.in_anatomy(None, "Find any lesion.", "knee").names == ("meniscus",), "recognized from the image"
    assert known.in_anatomy("brain", "Find any lesion.", "knee").names == BRAIN.names, "the header comes first"


def test_the_label_maps_of_the_training_patients_travel_with_the_model(tmp_path: Path) -> None:
    corpus = tiny_corpus(tmp_path / "corpus")
    known = KnownStructures.from_corpus(corpus)
    dataset = next(volume.dataset_id for volume in corpus.volumes.values() if volume.has_labels)
    assert set(known.names) == {name.lower() for value, name in corpus.label_map(dataset).items() if value}
    write_json(tmp_path / PREPROCESSING, {"matrix": 32, "pixel_mm": 1.0, "label_maps": known.to_json()})
    assert KnownStructures.of_model(tmp_path) == known and not KnownStructures.of_model(tmp_path / "corpus").names
