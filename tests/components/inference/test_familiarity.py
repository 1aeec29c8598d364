"""Images unlike anything in training are marked, and others rarely: the threshold is that of validation patients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.evaluation.scope_measurement import measure_familiarity
from components.inference import Predictor, save
from components.inference.familiarity import FamiliarImages, encode
from components.inference.question import Question
from components.inference.sliding_window import ResampledVolume
from components.ingestion.volume import Acquisition, Volume
from components.tasks.scope import OutOfScope, Scope
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.trained import tiny_model


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    root = tmp_path_factory.mktemp("familiar")
    corpus = tiny_corpus(root / "corpus", patients=24)
    folder = tiny_model(root / "model", corpus)
    familiar = measure_familiarity(Predictor.load(folder).model, corpus)
    assert familiar is not None
    (root / "about").mkdir()
    familiar.write(root / "about")
    return Predictor.load(folder)


def odd_images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    shapes = {
        "noise": rng.random((8, 32, 32)),
        "checkerboard": np.broadcast_to((rows // 4 + columns // 4) % 2, (8, 32, 32)),
        "ramp": np.broadcast_to(columns, (8, 32, 32)),
        "two blobs": np.broadcast_to(np.exp(-((rows - 16) ** 2 + (columns % 16 - 8) ** 2) / 9), (8, 32, 32)),
        "one bright pixel": np.pad(np.ones((8, 1, 1)), ((0, 0), (5, 26), (5, 26))),
    }
    return {name: np.asarray(values, np.float32) for name, values in shapes.items()}


@pytest.mark.parametrize("name", list(odd_images()))
def test_images_of_other_things_are_marked_in_the_answer(predictor: Predictor, name: str, tmp_path: Path) -> None:
    volume = Volume(odd_images()[name] * 900, tiny_volume(0).affine, Acquisition())
    prediction = predictor.predict(volume, "Report this image.")
    assert prediction.familiarity is not None and "unlike anything in training" in prediction.familiarity.warning
    save(prediction, tmp_path)
    assert '"warning": "this image is unlike' in (tmp_path / "answer.json").read_text()


def test_most_images_of_other_patients_are_not_marked(predictor: Predictor) -> None:
    assert predictor.familiar is not None
    volumes = [ResampledVolume.from_volume(tiny_volume(100 + seed, "T1-weighted"), 32, 6.75) for seed in range(20)]
    features = encode(predictor.model, [volume.crop(Question(volume, "").first_tile) for volume in volumes])
    assert sum(predictor.familiar.compare(one).is_unlike for one in features) <= 4


def test_the_rate_of_false_alarms_is_kept_on_average() -> None:
    """Distances are exchangeable: over many cohorts, the stated probability is the observed frequency."""
    rng = np.random.default_rng(1)
    stated, observed = [], []
    for _ in range(60):
        train, validation, test = (rng.standard_normal((count, 4)).astype(np.float32) for count in (30, 19, 50))
        fitted = FamiliarImages.fit(train, validation, test)
        stated.append(fitted.false_alarms)
        observed.append(fitted.test_alarms / fitted.test_images)
    assert stated == pytest.approx([0.05] * len(stated))
    assert np.mean(observed) == pytest.approx(0.05, abs=0.02)


def test_without_validation_images_nothing_is_marked() -> None:
    nothing = np.zeros((0, 4), np.float32)
    fitted = FamiliarImages.fit(np.ones((5, 4), np.float32), nothing, nothing)
    assert not fitted.compare(np.full(4, 1e6, np.float32)).is_unlike


def test_the_anatomy_is_recognized_only_if_the_nearest_training_images_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    brains, knees = rng.normal(0, 1, (40, 4)).astype(np.float32), rng.normal(8, 1, (40, 4)).astype(np.float32)
    train, names = np.concatenate([brains[:30], knees[:30]]), ["brain"] * 30 + ["knee"] * 30
    test, truth = np.concatenate([brains[30:], knees[30:]]), ["brain"] * 10 + ["knee"] * 10
    fitted = FamiliarImages.fit(train, test, test).with_anatomies(names, truth, test)
    assert (fitted.test_told, fitted.test_right) == (20, 20)
    mixed = FamiliarImages.fit(train, test, test).with_anatomies(["brain", "knee"] * 30, truth, test)
    assert mixed.test_told < 10
    assert fitted.with_anatomies(["brain"] * 60, truth, test).anatomy(test[0]) is None, "one anatomy excludes nothing"
    assert FamiliarImages.fit(train, test, test).anatomy(test[0]) is None, "anatomies are not recorded"
    fitted.write(tmp_path)
    stored = FamiliarImages.read(tmp_path)
    assert stored is not None and [stored.anatomy(one) for one in test] == truth


def test_a_knee_question_about_a_brain_without_a_header_is_refused(predictor: Predictor) -> None:
    assert predictor.familiar is not None
    brains = predictor.familiar.features_NF
    anatomies = ("brain",) * len(brains) + ("knee",) * len(brains)
    both = replace(predictor.familiar, features_NF=np.concatenate([brains, brains + 100]), anatomies=anatomies)
    scope = Scope(("segmentation",), ("brain", "knee"), (), {"brain": ("white matter",), "knee": ("meniscus",)}, {})
    other = replace(predictor, scope=scope, familiar=both)
    brain = replace(tiny_volume(3), acquisition=Acquisition())
    assert other.predict(brain, "Segment the white matter.").task
    with pytest.raises(OutOfScope, match="in no training image of the brain, which this is"):
        other.predict(brain, "Segment the meniscus.")
