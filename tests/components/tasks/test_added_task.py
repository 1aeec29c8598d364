"""A task from a plugin works everywhere: curation, training, evaluation and inference know it without an edit of theirs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from components import registries
from components.curation.corpus import Corpus
from components.evaluation import evaluate
from components.inference import Predictor
from components.registries import PLUGINS, STAGES, TASKS
from components.settings import EvaluationSettings, RegistrySettings, load_settings
from components.training.batches import StageBatches
from components.training.samples import Samples
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.objectives import InstructionTuning
from model_core.processing import Processor
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.trained import tiny_model

PLUGIN = "tests.helpers.toys.toy_task"


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Iterator[None]:
    """Register the task for the tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PLUGINS, PLUGIN)
        assert "plane" in TASKS
        yield
        del TASKS._entries["plane"], registries._imported[PLUGIN], sys.modules[PLUGIN]
        TASKS._objects.pop("plane")


@pytest.fixture(scope="module")
def corpus(plugin: None, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), corpus)


def test_the_corpus_has_its_instructions(corpus: Corpus) -> None:
    records = [record for record in corpus.instructions if record.task == "plane"]
    assert {record.split for record in records} == {"train", "validation", "test"}
    assert {record.response for record in records} == {"axial"} and len(records) == len(corpus.volumes)
    assert {record.task for record in corpus.instructions} == set(TASKS)


def test_training_samples_and_weighs_it(corpus: Corpus, model: Path) -> None:
    settings = load_settings("debug").training.stage("instruction_tuning")
    processor, config = Processor.from_pretrained(model), OmniMRIConfig.from_pretrained(model)
    maker = StageBatches(STAGES["instruction_tuning"], Samples.from_corpus(corpus, "train"), settings, config, processor, seed=0)
    assert "plane" in {source.name for source in maker.mixture.sources}
    number = list(TASKS).index("plane")
    batch = next(batch for step in range(20) for batch in maker[step] if (batch.task_B == number).any())
    loss = InstructionTuning(OmniMRIForConditionalGeneration.from_pretrained(model))(batch)
    total, count = loss.tasks["plane"]
    assert total > 0 and count == (batch.task_B == number).sum()


def test_evaluation_scores_it(corpus: Corpus, model: Path, tmp_path: Path) -> None:
    settings = EvaluationSettings(cases_per_task=2, sampler_steps=1, samples=1, max_new_tokens=8, sweep_cases=0)
    report = evaluate(model, corpus.root, settings, tmp_path, seed=0)
    [row] = [row for row in report.rows if row.task == "plane"]
    assert row.baselines == {"most frequent": 1.0} and row.cases == 2
    assert "<h2>plane</h2>" in report.report.read_text()


def test_a_prediction_belongs_to_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "_generate", lambda self, prompts: ["coronal"] * len(prompts))
    prediction = Predictor.load(model).predict(tiny_volume(0), "Which plane is this?")
    assert prediction.task == "plane" and prediction.text == "coronal"


def test_settings_accept_its_name_and_no_unknown_one() -> None:
    assert RegistrySettings(tolerances={"plane": 0.1}).tolerance_of("plane") == 0.1
    with pytest.raises(ValidationError, match=r"no such task; the tasks are reconstruction, .*, plane"):
        RegistrySettings(tolerances={"angle": 0.1})
