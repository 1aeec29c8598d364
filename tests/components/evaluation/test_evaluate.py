"""An evaluation of a model that knows nothing says so, on test patients only, and is made once."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.curation.corpus import Corpus
from components.errors import BadInput
from components.evaluation import EvaluationReport, evaluate
from components.evaluation.baselines import learn, total_variation
from components.evaluation.cases import choose
from components.evaluation.verdicts import verdict
from components.settings import TASKS, EvaluationSettings
from components.training.samples import input_and_target
from tests.corpora import tiny_corpus
from tests.trained import tiny_model

SETTINGS = EvaluationSettings(cases_per_task=4, sampler_steps=2, samples=1, max_new_tokens=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), corpus)


@pytest.fixture(scope="module")
def report(corpus: Corpus, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvaluationReport]:
    yield evaluate(model, corpus.root, SETTINGS, tmp_path_factory.mktemp("out"), seed=0)


def test_every_task_has_rows_with_baselines(report: EvaluationReport) -> None:
    assert {row.task for row in report.rows} == set(TASKS)
    assert all(row.baselines and row.cases and row.patients for row in report.rows)


def test_the_page_says_where_the_model_loses_and_what_it_rests_on(report: EvaluationReport) -> None:
    page = report.report.read_text()
    assert "All test patients are synthetic" in page and "Where the model loses" in page
    worse = [row for row in report.rows if row.verdict == "worse"]
    assert len(re.findall(r'class="worse"', page)) == len(worse)
    assert page.count("data:image/png;base64,") == 3 and "http" not in page.replace("http-equiv", "")


def test_it_is_made_once(report: EvaluationReport, corpus: Corpus, model: Path) -> None:
    again = evaluate(model, corpus.root, SETTINGS, report.folder.parent, seed=0)
    assert again.reused and not report.reused and again == report


def test_only_test_patients_are_asked_about(corpus: Corpus) -> None:
    for records in choose(corpus, 6, seed=0).values():
        assert records and all(corpus.splits[record.patient_id] == "test" for record in records)
        assert len({record.sample_id for record in records}) == len(records)


def test_the_atlas_knows_training_patients_only(corpus: Corpus) -> None:
    """Without the labels of the training split there is no atlas, whatever the test split holds."""
    learned = learn(corpus)
    assert learned.atlas and learned.report and learned.box
    without = Corpus(corpus.root, corpus.summary)
    without.__dict__["volumes"] = {k: v for k, v in corpus.volumes.items() if v.split != "train"}
    assert not learn(without).atlas


def test_total_variation_beats_zero_filling(corpus: Corpus) -> None:
    record = next(one for one in corpus.instructions if one.task == "reconstruction")
    image, target = input_and_target(corpus, record)
    made = total_variation(target.kspace, target.sampling)
    assert ((made - target.image) ** 2).mean() < ((image - target.image) ** 2).mean()


def test_a_difference_must_hold_across_patients() -> None:
    patients = [f"p{i // 3}" for i in range(12)]
    clear, doubtful = [0.9] * 12, [0.9] * 9 + [-5.0] * 3

    def score(values: list[float]):  # type: ignore[no-untyped-def]
        return lambda chosen: sum(values[i] for i in chosen) / len(chosen)

    zero = score([0.0] * 12)
    assert verdict(score(clear), zero, patients, higher_is_better=True) == "better"
    assert verdict(score(clear), zero, patients, higher_is_better=False) == "worse"
    assert verdict(score(doubtful), zero, patients, higher_is_better=True) == "no difference"


def test_a_folder_without_a_model_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"config\.json"):
        evaluate(tmp_path, corpus.root, SETTINGS, tmp_path, seed=0)
