"""Versions carry their lineage, gates check them before promotion, they pass a smoke test, and every action is recorded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from components.catalog import load_card
from components.errors import BadInput, GateRefused, JobFailed
from components.evaluation.results import COHORT
from components.inference import Predictor, resolve_model
from components.model_files import WEIGHTS_TAG
from components.registries import STAGES, TASKS
from components.registry import (
    ModelVersion,
    audit_log,
    gate_failures,
    history,
    list_versions,
    logged_models,
    origin,
    promote,
    refusal,
    rollback,
    show_version,
    versions_with_dataset,
    versions_with_patients,
)
from components.registry.audit_entries import Action
from components.registry.logged_models import LoggedModels
from components.registry.registration import SETTINGS as SETTINGS_FILE
from components.registry.registration import _example, audit_log_of
from components.registry.smoke_test import failure_reason
from components.settings import load_settings
from components.tasks.scope import Scope
from tests.helpers.registered import SETTINGS, Store

NAME = SETTINGS.name


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def first(store: Store) -> ModelVersion:
    return store.register()


def test_a_new_version_is_candidate_and_knows_where_it_comes_from(first: ModelVersion) -> None:
    assert first.aliases == ("candidate",)
    assert first.tags["data_digest"] == "data" and first.tags["git_commit"] == "commit"
    assert all(first.tags[f"stage_digest.{stage}"] == f"digest-{stage}" for stage in STAGES.built_in)


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
    answer = served.predict(_example(None)).iloc[0]
    assert answer["task"] in TASKS and isinstance(answer["text"], str)


def test_the_example_of_a_version_is_a_question_that_fits_every_anatomy() -> None:
    """Its image has no header: of a model of several anatomies, the smoke test must not be refused."""
    asked = {"detection": ["Detect a tumor."], "report": ["Report this image."]}
    scope = Scope(("detection", "report"), ("brain", "knee"), (), {}, {"brain": ("tumor",), "knee": ("tear",)}, examples=asked)
    assert _example(scope).iloc[0]["instruction"] == "Report this image."


def test_lineage_lists_all_origins_and_what_is_missing(store: Store, first: ModelVersion) -> None:
    found = origin("candidate", store.uri, NAME)
    assert found.facts["data_digest"] == "data" and found.facts["environment"] == "lock" and found.facts["container"] == "none"
    assert [stage for stage, _, _ in found.stages] == list(STAGES.built_in) and found.missing == ("evaluation_cases",)
    assert found.settings["profile"] == "debug"


def test_lineage_leads_forward_from_patients_and_datasets(store: Store, first: ModelVersion) -> None:
    by_split = {split: patient for patient, split in store.corpus.splits.items()}
    for split, patient in by_split.items():
        [use] = versions_with_patients({"tiny-brain": {patient}}, (), store.uri)
        assert (use.version, use.splits, use.data_digest) == ("1", (split,), "data")
    assert not versions_with_patients({"tiny-brain": {"p000000000bad"}, "another": set(by_split.values())}, ("data",), store.uri)
    [use] = versions_with_dataset("tiny-brain", store.uri)
    assert "train" in use.splits and not versions_with_dataset("another", store.uri)


def test_a_version_whose_files_are_lost_counts_as_unknown(store: Store, first: ModelVersion) -> None:
    """A withdrawal asks which models used a patient; that some artifacts are lost must not stop it."""
    artifacts = resolve_model(f"models:/{NAME}/1", store.uri).parents[1]
    artifacts.rename(artifacts.with_name("lost"))
    try:
        [use] = versions_with_patients({"tiny-brain": {"p000000000bad"}}, (), store.uri)
        assert use.splits == ("unknown",)
        with pytest.raises(JobFailed, match="its files are lost"):
            resolve_model(f"models:/{NAME}/1", store.uri)
        with pytest.raises(JobFailed, match="its files are lost"):
            origin("1", store.uri, NAME)
    finally:
        artifacts.with_name("lost").rename(artifacts)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tiny-brain": []}', "\udcff"])
def test_a_version_whose_lists_are_damaged_counts_as_unknown(store: Store, first: ModelVersion, content: str) -> None:
    about = resolve_model(f"models:/{NAME}/1", store.uri).parent / "about"
    kept = {file: (about / file).read_bytes() for file in (COHORT, SETTINGS_FILE)}
    try:
        for file in kept:
            (about / file).write_bytes(content.encode(errors="surrogateescape"))
        [use] = versions_with_patients({"tiny-brain": {"p000000000bad"}}, (), store.uri)
        assert use.splits == ("unknown",)
        if not content.startswith('{"'):
            with pytest.raises(JobFailed, match=r"settings\.json is damaged"):
                origin("1", store.uri, NAME)
    finally:
        for file, bytes_before in kept.items():
            (about / file).write_bytes(bytes_before)


def test_a_patient_is_found_in_a_renamed_model_and_other_programs_are_left_alone(store: Store, first: ModelVersion) -> None:
    patient = next(iter(store.corpus.splits))
    store.client.create_registered_model("of another program")
    store.client.create_model_version("of another program", "s3://nowhere/model")
    store.client.rename_registered_model(NAME, "another name")
    try:
        assert [use.name for use in versions_with_patients({"tiny-brain": {patient}}, (), store.uri)] == ["another name"]
    finally:
        store.client.rename_registered_model("another name", NAME)


def test_a_registered_model_identifies_no_patient(store: Store, first: ModelVersion) -> None:
    folder = resolve_model(f"models:/{NAME}/1", store.uri).parent
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"cohort" in b"".join(str(path).encode() for path in folder.rglob("*"))
    assert not any(patient.encode() in kept for patient in store.corpus.splits)


def test_an_unknown_version_is_an_error(store: Store, first: ModelVersion) -> None:
    with pytest.raises(BadInput, match="models list"):
        show_version("99", store.uri, "omnimri")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_digest": ""}, "data_digest is missing"),
        ({"git_commit": "unknown"}, "no git commit"),
        ({"validation_passed": "False"}, "did not pass"),
        ({"results": "[]"}, "has not been evaluated"),
        ({"results": '[["report", "BLEU", true, NaN]]'}, "not a number"),
        ({"results": '[["report", "BLEU", true, 0.5]]'}, "segmentation was not measured"),
    ],
)
def test_each_gate_names_its_reason(first: ModelVersion, change: dict[str, str], reason: str) -> None:
    assert not gate_failures(first, {}, "staging", SETTINGS)
    assert any(reason in one for one in gate_failures(replace(first, tags={**first.tags, **change}), {}, "staging", SETTINGS))


def test_a_refusal_reports_that_the_evaluated_cases_differ(first: ModelVersion) -> None:
    before = replace(first, version="7", tags={**first.tags, "results": first.tags["results"].replace("0.8", "0.9")})
    for cases, differ in (("other", True), (first.tags["evaluation_cases"], False)):
        asked = replace(before, tags={**before.tags, "evaluation_cases": cases})
        reasons = gate_failures(replace(first, version="8"), {"staging": asked}, "staging", SETTINGS)
        assert any("0.8000 is worse than 0.9000" in reason for reason in reasons)
        assert any("staging version 7 was evaluated on other cases" in reason for reason in reasons) is differ


def test_metrics_where_lower_is_better(first: ModelVersion) -> None:
    def version(value: float, number: str) -> ModelVersion:
        rows = [[task, "score", False, value] for task in TASKS]
        return replace(first, version=number, tags={**first.tags, "results": json.dumps(rows)})

    assert not gate_failures(version(0.05, "8"), {"staging": version(0.10, "7")}, "staging", SETTINGS)
    assert gate_failures(version(0.10, "8"), {"staging": version(0.05, "7")}, "staging", SETTINGS)


def test_a_candidate_for_staging_is_also_compared_with_production_by_the_tolerance_of_each_task(first: ModelVersion) -> None:
    def version(number: str, report: float) -> ModelVersion:
        rows = [[task, "score", True, report if task == "report" else 0.8] for task in TASKS]
        return replace(first, version=number, tags={**first.tags, "results": json.dumps(rows)})

    places = {"staging": version("7", report=0.1), "production": version("6", report=0.8)}
    [reason] = gate_failures(version("8", report=0.6), places, "staging", SETTINGS)
    assert "report/score: 0.6000 is worse than 0.8000 of production version 6 by 0.2000" in reason
    lenient = SETTINGS.model_copy(update={"tolerances": {"report": 0.3}})
    assert not gate_failures(version("8", report=0.6), places, "staging", lenient)


def test_uncommitted_code_is_not_promoted_to_production(first: ModelVersion) -> None:
    dirty = replace(first, aliases=("staging",), tags={**first.tags, "git_commit": "abc+dirty"})
    assert not gate_failures(dirty, {}, "staging", SETTINGS)
    assert gate_failures(dirty, {}, "production", SETTINGS) == ["lineage: the code had uncommitted changes"]


def places(store: Store) -> dict[str, str]:
    return {alias: version.version for version in list_versions(store.uri, NAME) for alias in version.aliases}


def in_production(store: Store) -> list[str]:
    """Return the version that a client of the legacy stage ``models:/omnimri/Production`` gets."""
    return [str(one.version) for one in mlflow.MlflowClient(store.uri).get_latest_versions(NAME, ["Production"])]


def test_from_candidate_to_production_refused_forced_and_back(store: Store, first: ModelVersion) -> None:
    with pytest.raises(GateRefused, match="only the staging version"):
        promote("1", "production", store.uri, SETTINGS)
    promote("1", "staging", store.uri, SETTINGS)
    promote("staging", "production", store.uri, SETTINGS, reason="first release")
    assert places(store) == {"candidate": "1", "staging": "1", "production": "1"} and in_production(store) == ["1"]

    worse = store.evaluated_again("another", score=0.7)
    with pytest.raises(GateRefused, match=r"segmentation/score: 0\.7000 is worse than 0\.8000 .* by 0\.1000, more than .* 0\.0160"):
        promote(worse.version, "staging", store.uri, SETTINGS)
    assert refusal(worse, "staging", store.uri, SETTINGS) and places(store)["staging"] == "1"
    with pytest.raises(BadInput, match="needs a reason"):
        promote(worse.version, "staging", store.uri, SETTINGS, reason=" ", force=True)
    promote(worse.version, "staging", store.uri, SETTINGS, reason="version 1 is withdrawn", force=True)
    promote(worse.version, "production", store.uri, SETTINGS, reason="version 1 is withdrawn", force=True)
    assert places(store) == {"candidate": "2", "staging": "2", "production": "2", "archived": "1"} and in_production(store) == ["2"]

    rollback("production", store.uri, SETTINGS, reason="the withdrawal was a mistake")
    assert places(store) == {"candidate": "2", "staging": "2", "production": "1", "archived": "2"} and in_production(store) == ["1"]
    with pytest.raises(BadInput, match="no earlier production version"):
        rollback("production", store.uri, SETTINGS, reason="further")

    entries, faults = history(store.uri, NAME)
    recorded = [(entry.act.action, entry.act.version, entry.act.place) for entry in entries]
    assert recorded == [
        ("register", "1", "candidate"),
        ("refuse", "1", "production"),
        ("promote", "1", "staging"),
        ("promote", "1", "production"),
        ("register", "2", "candidate"),
        ("refuse", "2", "staging"),
        ("force", "2", "staging"),
        ("force", "2", "production"),
        ("rollback", "1", "production"),
    ]
    refused = entries[5].act
    assert any("segmentation/score" in gate for gate in refused.gates) and ("segmentation/score", 0.7, 0.8) in refused.figures
    assert entries[6].act.reason == "version 1 is withdrawn" and entries[6].act.gates == refused.gates
    assert all(entry.who and entry.done for entry in entries) and not faults


def test_weights_that_changed_after_their_evaluation_are_refused(store: Store, first: ModelVersion) -> None:
    later = store.evaluated_again("later", score=0.9)
    file = resolve_model(f"models:/{NAME}/{later.version}", store.uri) / "preprocessing.json"
    before = file.read_text()
    file.write_text(before.replace("32", "64"))
    with pytest.raises(GateRefused, match="differ from those that were evaluated"):
        promote(later.version, "staging", store.uri, SETTINGS)
    file.write_text(before)
    assert "staging" in promote(later.version, "staging", store.uri, SETTINGS).aliases


def test_an_alias_moved_outside_of_omnimri_is_detected_and_recorded(store: Store, first: ModelVersion) -> None:
    client = mlflow.MlflowClient(store.uri)
    client.set_registered_model_alias(NAME, "production", "2")
    assert history(store.uri, NAME)[1] == ["history: production was moved from 1 to 2 outside of OmniMRI"]
    newest = store.evaluated_again("newest", score=0.95)
    entries, faults = history(store.uri, NAME)
    assert [entry.act.action for entry in entries[-2:]] == ["outside", "register"] and not faults
    assert show_version("production", store.uri, NAME).version == "2" and newest.aliases == ("candidate",)


def test_a_failed_smoke_test_gives_the_reason(store: Store, first: ModelVersion) -> None:
    """The test runs in a process that has imported nothing of this checkout. Version 1 passed it when it was promoted."""
    assert all("answered" in version.tags for version in list_versions(store.uri, NAME) if version.version == "1")
    stored_code = resolve_model(f"models:/{NAME}/1", store.uri).parents[1] / "pyfunc_model.py"
    before = stored_code.read_text()
    stored_code.write_text("raise RuntimeError('the stored code is broken')")
    try:
        reason = failure_reason(f"models:/{NAME}/1", store.uri)
        assert reason.startswith("predicting the input example failed: ") and "the stored code is broken" in reason
    finally:
        stored_code.write_text(before)


def test_the_model_card_is_generated_from_the_evaluation(store: Store, first: ModelVersion) -> None:
    card = (resolve_model(f"models:/{NAME}/1", store.uri).parent / "about" / "README.md").read_text()
    assert "not for clinical use" in card and "`commit`" in card and "`results`" not in card
    assert all(f"| {task} | score | 0.800 |" in card for task in TASKS)
    assert "Report was measured on 2 patients, too few for a statistical verdict." in card
    assert all(f"\n| {load_card(one.card).name} |" in card for one in load_settings("debug").datasets)
    assert "Report was measured" in store.client.get_model_version(NAME, "1").description


@pytest.mark.parametrize("place", ["create_model_version", "set_registered_model_alias"])
def test_an_interrupted_registration_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Interrupted before the version exists, and before its alias and entry do: the next registration completes it once."""
    store = Store(tmp_path)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(mlflow.MlflowClient, place, interrupt)
        store.register()
    monkeypatch.setattr(audit_log, "LEASE_S", 0.0)
    assert store.register().aliases == ("candidate",)
    entries, faults = history(store.uri, NAME)
    assert [entry.act.action for entry in entries] == ["register"] and not faults
    experiment = store.client.get_run(store.run).info.experiment_id
    assert len(store.client.search_logged_models([experiment])) == len(list_versions(store.uri, NAME)) == 1


def test_changed_weights_of_a_version_are_refused_when_it_is_loaded(store: Store, first: ModelVersion) -> None:
    weights = resolve_model(f"models:/{NAME}/1", store.uri) / "model.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(JobFailed, match="differ from those that were evaluated"):
            resolve_model(f"models:/{NAME}/1", store.uri)
        with pytest.raises(mlflow.MlflowException, match="differ from those that were evaluated"):
            mlflow.pyfunc.load_model(f"models:/{NAME}/1")
        store.client.delete_model_version_tag(NAME, "1", WEIGHTS_TAG)
        with pytest.raises(JobFailed, match="differ from those that were evaluated"):
            resolve_model(f"models:/{NAME}/1", store.uri)
    finally:
        weights.write_bytes(content)
        store.client.set_model_version_tag(NAME, "1", WEIGHTS_TAG, first.tags[WEIGHTS_TAG])


def test_every_command_names_the_new_name_of_a_renamed_model(store: Store, first: ModelVersion) -> None:
    commands: dict[str, Callable[[], object]] = {
        "models list": lambda: list_versions(store.uri, NAME),
        "models show": lambda: show_version("1", store.uri, NAME),
        "models show ALIAS": lambda: show_version("candidate", store.uri, NAME),
        "models promote": lambda: promote("1", "staging", store.uri, SETTINGS),
        "rollback": lambda: rollback("production", store.uri, SETTINGS, "reason"),
        "history": lambda: history(store.uri, NAME),
        "lineage": lambda: origin("1", store.uri, NAME),
        "predict": lambda: resolve_model(f"models:/{NAME}/1", store.uri),
        "predict ALIAS": lambda: resolve_model(f"models:/{NAME}@candidate", store.uri),
    }
    store.client.rename_registered_model(NAME, "another name")
    try:
        for command, call in commands.items():
            with pytest.raises(JobFailed, match="renamed to another name"):
                call()
                pytest.fail(command)
    finally:
        store.client.rename_registered_model("another name", NAME)


def test_only_old_models_that_no_version_of_any_name_uses_are_swept(
    store: Store, first: ModelVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = LoggedModels(store.client, NAME, store.run, "abandoned")
    experiment = store.client.get_run(store.run).info.experiment_id
    orphan = store.client.create_logged_model(experiment, NAME, store.run, logged.tags).model_id
    store.client.rename_registered_model(NAME, "another name")
    try:
        before = {model.model_id for model in store.client.search_logged_models([experiment])}
        logged.sweep()
        assert {model.model_id for model in store.client.search_logged_models([experiment])} == before
        monkeypatch.setattr(logged_models, "UNUSED_S", -60.0)
        logged.sweep()
        left = {model.model_id for model in store.client.search_logged_models([experiment])}
        assert orphan not in left and store.client.get_model_version("another name", "1").source.rpartition("/")[2] in left
    finally:
        store.client.rename_registered_model("another name", NAME)


def test_a_model_without_versions_has_a_history_still(store: Store) -> None:
    audit_log_of(store.uri, "emptied").write(lambda state: Action("refuse", "1", "staging"))
    entries, faults = history(store.uri, "emptied")
    assert len(entries) == 1 and not faults


def test_the_scope_is_in_the_card_and_refuses_other_questions_of_a_registered_version(store: Store, first: ModelVersion) -> None:
    folder = resolve_model(f"models:/omnimri/{first.version}", store.uri)
    card = (folder.parent / "about" / "README.md").read_text()
    assert "- anatomies: brain" in card and "- structures: cerebrospinal fluid, grey matter, lesion, white matter" in card
    served = mlflow.pyfunc.load_model(f"models:/omnimri/{first.version}")
    request = _example(None).assign(instruction="Segment the meniscus in this knee MRI.")
    with pytest.raises(mlflow.MlflowException, match="not trained on: meniscus, knee"):
        served.predict(request)
