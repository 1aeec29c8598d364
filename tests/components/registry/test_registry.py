"""Versions carry their lineage, gates open for what holds, and what is served answers."""

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from components.curation.corpus import Corpus
from components.errors import BadInput, GateRefused
from components.evaluation import EvaluationReport, ResultRow
from components.files import write_json
from components.home import Home
from components.inference import Predictor, resolve_model
from components.registry import Lineage, ModelVersion, gate, list_versions, promote, register, show_version
from components.registry.versions import _example
from components.settings import STAGES, TASKS, RegistrySettings, load_settings
from components.tracking import Tracking
from tests.corpora import tiny_corpus
from tests.trained import tiny_model

SETTINGS = RegistrySettings(tolerance=0.02)
ROWS = tuple(ResultRow(task, "score", True, 0.8, {"trivial": 0.5}, "better", 4, 2) for task in TASKS)


class Store:
    """A real MLflow store with one model to register."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root, root / "data")
        self.uri = self.home.tracking_uri
        corpus: Corpus = tiny_corpus(root / "corpus")
        self.model = tiny_model(root / "model", corpus)
        self.run = Tracking(self.uri, self.home).pipeline_run("digest", load_settings("debug"), "data", {})
        write_json(root / "report.html", {})

    def lineage(self) -> Lineage:
        stages = {stage: f"digest-{stage}" for stage in STAGES}
        return Lineage("data", "corpus", "settings", "{}", "commit", "lock", stages, stages, validation_passed=True)

    def evaluation(self, digest: str = "evaluation", score: float = 0.8) -> EvaluationReport:
        rows = tuple(replace(row, model=score) for row in ROWS)
        return EvaluationReport(digest, self.home.root, self.home.root / "report.html", rows)

    def register(self, digest: str = "evaluation", score: float = 0.8, lineage: Lineage | None = None) -> ModelVersion:
        return register(self.model, self.evaluation(digest, score), lineage or self.lineage(), self.uri, self.run, "omnimri")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def first(store: Store) -> ModelVersion:
    return store.register()


def test_a_new_version_is_candidate_and_knows_where_it_comes_from(first: ModelVersion) -> None:
    assert first.aliases == ("candidate",)
    assert first.tags["data_digest"] == "data" and first.tags["git_commit"] == "commit"
    assert all(first.tags[f"stage_digest.{stage}"] == f"digest-{stage}" for stage in STAGES)


def test_the_same_model_keeps_its_version(store: Store, first: ModelVersion) -> None:
    assert store.register() == show_version(first.version, store.uri, "omnimri")
    assert len(list_versions(store.uri, "omnimri")) == 1


def test_the_weights_come_back_byte_for_byte(store: Store, first: ModelVersion) -> None:
    folder = resolve_model(f"models:/omnimri/{first.version}", store.uri)
    name = "model.safetensors"
    assert (folder / name).read_bytes() == (store.model / name).read_bytes()
    assert Predictor.load(folder).matrix == 32


def test_the_registered_model_answers_a_request(store: Store, first: ModelVersion) -> None:
    mlflow.set_tracking_uri(store.uri)
    served = mlflow.pyfunc.load_model(f"models:/omnimri/{first.version}")
    answer = served.predict(_example()).iloc[0]
    assert answer["task"] in TASKS and isinstance(answer["text"], str)


def test_promotion_walks_through_staging_to_production_and_the_legacy_stage_follows(store: Store, first: ModelVersion) -> None:
    with pytest.raises(GateRefused, match="only the staging version"):
        promote(first.version, "production", store.uri, SETTINGS)
    assert "staging" in promote(first.version, "staging", store.uri, SETTINGS).aliases
    assert "production" in promote("staging", "production", store.uri, SETTINGS).aliases
    client = mlflow.MlflowClient(store.uri)
    assert client.get_model_version("omnimri", first.version).current_stage == "Production"


def test_a_worse_version_is_refused_by_how_much_and_a_reason_overrides_and_is_kept(store: Store, first: ModelVersion) -> None:
    promote(first.version, "staging", store.uri, SETTINGS)
    worse = store.register("another", score=0.7)
    assert worse.version != first.version
    with pytest.raises(GateRefused, match=r"segmentation/score: 0\.7000 is worse than 0\.8000 .* by 0\.1000, more than .* 0\.0160"):
        promote(worse.version, "staging", store.uri, SETTINGS)
    assert "staging" in show_version(first.version, store.uri, "omnimri").aliases
    with pytest.raises(BadInput, match="reason"):
        promote(worse.version, "staging", store.uri, SETTINGS, reason=" ")
    forced = promote(worse.version, "staging", store.uri, SETTINGS, reason="the old one is withdrawn")
    assert "staging" in forced.aliases and forced.tags["forced.staging"].startswith("the old one is withdrawn [")


def test_the_legacy_stage_follows_a_rollback(store: Store, first: ModelVersion) -> None:
    """MLflow answers ``models:/omnimri/Production`` with the newest version of that stage: the withdrawn one must leave it."""
    later = store.register("later")
    client = mlflow.MlflowClient(store.uri)
    for version in (later.version, first.version):
        promote(version, "production", store.uri, SETTINGS, reason="a test")
        assert "production" in show_version(version, store.uri, "omnimri").aliases
        assert [str(one.version) for one in client.get_latest_versions("omnimri", ["Production"])] == [version]
    promote(first.version, "staging", store.uri, SETTINGS, reason="a test")
    assert client.get_model_version("omnimri", first.version).current_stage == "Production"


def test_a_version_that_is_not_there_is_an_error(store: Store, first: ModelVersion) -> None:
    with pytest.raises(BadInput, match="models list"):
        show_version("99", store.uri, "omnimri")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_digest": ""}, "data_digest is missing"),
        ({"git_commit": "unknown"}, "no git commit"),
        ({"validation_passed": "False"}, "did not pass"),
        ({"results": "[]"}, "the version has none"),
        ({"results": '[["report", "BLEU", true, NaN]]'}, "not a number"),
        ({"results": '[["report", "BLEU", true, 0.5]]'}, "segmentation was not measured"),
    ],
)
def test_each_gate_names_its_reason(first: ModelVersion, change: dict[str, str], reason: str) -> None:
    assert not gate(first, None, "staging", SETTINGS)
    assert any(reason in one for one in gate(replace(first, tags={**first.tags, **change}), None, "staging", SETTINGS))


def test_a_refusal_says_when_the_cases_were_not_the_same(first: ModelVersion) -> None:
    before = replace(first, version="7", tags={**first.tags, "results": first.tags["results"].replace("0.8", "0.9")})
    for cases, said in (("other", True), (first.tags["evaluation_cases"], False)):
        asked = replace(before, tags={**before.tags, "evaluation_cases": cases})
        reasons = gate(replace(first, version="8"), asked, "staging", SETTINGS)
        assert any("0.8000 is worse than 0.9000" in reason for reason in reasons)
        assert any("staging version 7 was asked other cases" in reason for reason in reasons) is said


def test_lower_is_better_where_it_is(first: ModelVersion) -> None:
    def version(value: float, number: str) -> ModelVersion:
        rows = [[task, "score", False, value] for task in TASKS]
        return replace(first, version=number, tags={**first.tags, "results": json.dumps(rows)})

    assert not gate(version(0.05, "8"), version(0.10, "7"), "staging", SETTINGS)
    assert gate(version(0.10, "8"), version(0.05, "7"), "staging", SETTINGS)
