"""The plan equals the run: whatever field of a card or setting changes, the steps that ``--dry-run`` announces are those that run.

A tiny home is ingested, curated and validated for real; its stages, evaluation and registration are marked as done. Then one field
at a time changes. The steps of a run are taken from the components themselves, not from the planner: curation runs for real on a
copy of the corpus, and the later steps are looked up by the digests under which they store their results. The slow tests at the end
train.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prefect.logging import disable_run_logger
from pydantic import BaseModel

from components.catalog import DatasetCard, load_card
from components.catalog.layout import Layout
from components.curation import curate
from components.curation.corpus import SUMMARY, Corpus
from components.evaluation.evaluate import evaluation_inputs
from components.files import read_json, write_json
from components.home import Home
from components.ingestion.deidentification.pseudonyms import load_key
from components.ingestion.ingest_dataset import output_recipe
from components.provenance import SHORT
from components.registries import STAGES as REGISTERED_STAGES
from components.registry.inputs import RegistrationInputs
from components.settings import DatasetSettings, MixtureSettings, Settings, StageSettings, TrainingSettings, load_settings
from components.training import stage_inputs, stage_jobs
from components.validation import current_report
from components.verified_files import is_sealed, seal
from flows import curate as curate_flow
from flows import ingest as ingest_flow
from flows.steps import pinned_data, plan, record_step
from tests.helpers.datasets import tree, write_cohort
from tests.helpers.served import tiny_profile

CARD = "tiny-cohort"
MIXTURE = {"image_only": 0.5, "paired": 0.25, "instruction": 0.25}
STATISTICS = {
    "patients": 4,
    "scans": 8,
    "volumes": 8,
    "slices": 64,
    "male": 1,
    "female": 1,
    "age_years": [20.0, 60.0],
    "mean_age_years": 40.0,
    "field_strengths_t": [3.0],
}
CARD_VALUES: dict[str, Any] = {
    "landing_page": "https://example.org/cohort",
    "doi": "10.1000/1234",
    "version": "2",
    "regions": ["Asia"],
    "vendors": ["Siemens"],
    "sequences": ["T1-weighted"],
    "overlaps": {"icbm152-2009": 1},
    "notes": "a remark",
    "access": "registration",
    "formats": ["NIfTI", "DICOM"],
    "tasks": ["segmentation"],
    "label_map": {1: "gray matter", 2: "white matter", 3: "tumor"},
    "sources": {name: {"where": "another page of its publisher", "checked": False} for name in STATISTICS},
    "age_years": [21.0, 60.0],
    "field_strengths_t": [1.5],
    "patients": 5,
    "layout.images": ["sub-*/anat/*_T1w.nii"],
    "layout.labels": ["sub-*/anat/*_dseg.nii"],
    "layout.tissue_maps": {1: "*_GM.nii"},
    "layout.ignored_structures": ["couch*"],
    "layout.case": "(sub-[^/]+)/",
    "layout.boxes": ["boxes.csv"],
    "layout.reviewed": ["reviewed.txt"],
    "layout.tables": [{"path": "labels.csv", "findings": {"lesion": "lesion"}}],
    "layout.patient": "sub-([^/]+)/",
    "layout.sequences": {"_T1w": "FLAIR"},
    "layout.channels": ["T1-weighted"],
    "layout.planes": {"_cor": "coronal"},
    "layout.spacing_mm": [2.0, 1.0, 1.0],
    "layout.ignored": ["*_mask.nii"],
    "layout.orientation": "LAS",
}
"""Values of card fields whose form is more than a type; the other fields are changed by type."""
CARD_SKIPPED = {
    "id": "another id is another dataset",
    "generated": "excludes counts and a folder of one's own; its digest is tested in components/samples/test_cohort.py",
    "pacs": "names an archive, which every run asks, where the dataset has no folder; components/pacs tests it",
}
SETTINGS_SKIPPED = {
    "datasets": "changed below, as another source folder",
    "pacs.servers": "archives of other datasets; components/pacs tests them",
    "curation.visual": "needs a vision-language model, which test_annotate.py provides",
    "ingestion.key_file": "changed below, together with a file",
    "model.tokenizer": "changed below, together with a folder",
    "model.backbone": "changed below, together with folders",
    "training.adapter_rank": "changed below, together with a backbone",
}

STAGES = REGISTERED_STAGES.built_in


def card_fields() -> list[str]:
    layout = [f"layout.{name}" for name in Layout.model_fields]
    return [name for name in (*DatasetCard.model_fields, *layout) if name not in (*CARD_SKIPPED, "layout")]


def setting_fields(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every setting; a mixture counts as one, because its shares sum to 1."""
    for name, info in model.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel) and nested is not MixtureSettings:
            yield from setting_fields(nested, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in SETTINGS_SKIPPED:
            yield f"{prefix}{name}"
    if model is TrainingSettings:
        for stage in STAGES:
            yield from setting_fields(StageSettings, f"{prefix}{stage}.")


def candidates(value: Any, annotation: Any) -> Iterator[Any]:
    """Yield other values of a field, by the type of the present one; the models refuse the unsuitable ones."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, value + 32, value - 1, 2, 8)
    elif isinstance(value, float):
        yield from (value + 0.01, value / 2, value * 2)
    elif isinstance(value, str):
        yield from (choice for choice in get_args(annotation) if isinstance(choice, str) and choice != value)
        yield f"{value}x"
    elif isinstance(value, dict) and set(value) == set(MIXTURE):
        yield MIXTURE
    elif isinstance(value, dict):
        yield from ({**value, "other": "/other"}, {"segmentation": 0.5}, {**value, "other": 1})
    elif isinstance(value, (list, tuple)):
        yield from (list(value)[:-1], [*value, 3], [*value, "other"], [*value, {"key": "other"}])
    else:
        yield from (word for part in get_args(annotation) for word in get_args(part) if isinstance(word, str))
        yield from ("other", 3)


def changed(model: type[BaseModel], raw: dict[str, Any], name: str) -> dict[str, Any]:
    """Return raw values with one field replaced by another valid value."""
    *sections, leaf = name.split(".")
    owner, annotations = raw, model
    for section in sections:
        info = annotations.model_fields.get(section)
        owner, annotations = owner[section], info.annotation if info else StageSettings  # type: ignore[assignment]
    for candidate in candidates(owner[leaf], annotations.model_fields[leaf].annotation):
        other = yaml.safe_load(yaml.safe_dump(raw))
        inner = other
        for section in sections:
            inner = inner[section]
        inner[leaf] = candidate
        try:
            parsed = model.model_validate(other)
        except ValueError:
            continue
        if parsed != model.model_validate(raw):
            return other
    raise AssertionError(f"no other value for {name}: add one")


@dataclass
class Installation:
    """A prepared home, and the inputs that its model was registered from."""

    home: Home
    settings: Settings
    card: dict[str, Any]
    tags: dict[str, str] = field(default_factory=dict)

    def write_card(self, card: dict[str, Any]) -> None:
        (self.home.cards / f"{CARD}.yaml").write_text(yaml.safe_dump(card))

    def mark_model(self) -> None:
        """Mark the stages, the evaluation and the registration of the present settings and corpus as done."""
        home, settings, corpus, parent = self.home, self.settings, Corpus.open(self.home.curated).digest, ""
        for stage, job in zip(STAGES, stage_jobs(corpus, settings, home), strict=True):
            (job.folder / "model").mkdir(parents=True)
            for name in ("done.json", "model/config.json", "model/model.safetensors"):
                (job.folder / name).write_text("{}" if name == "done.json" else job.identity)
            record_step(home, stage, stage_inputs(stage, settings, corpus, parent), job.folder / "done.json")
            parent = job.identity
        inputs = evaluation_inputs(job.folder / "model", corpus, settings.evaluation, settings.seed)
        results = home.evaluations / inputs.digest[:SHORT] / "results.json"
        write_json(results, {})
        seal(results.parent)
        record_step(home, "evaluate", inputs.by_name(), results)
        registration = RegistrationInputs(inputs.weights, inputs.digest, pinned_data(home), settings.digest())
        record_step(home, "register", registration.by_name(), results)
        self.tags = registration.tags()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    root = tmp_path_factory.mktemp("installation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIMRI_HOME", str(root / "home"))
        patch.setenv("OMNIMRI_DATA", str(root / "data"))
        patch.delenv("OMNIMRI_CARDS", raising=False)
        patch.setattr(ingest_flow, "publish_data_version", lambda *_: None)
        patch.setattr(curate_flow, "publish_validation", lambda *_: None)
        home = Home.open()
        home.cards.mkdir(parents=True)
        card = load_card("synthetic-brain-nifti").model_dump(mode="json", exclude_defaults=True, exclude={"generated"})
        sources = {name: {"where": "a page of its publisher", "checked": True} for name in STATISTICS}
        prepared = Installation(home, _settings(root), {**card, **STATISTICS, "id": CARD, "sources": sources})
        prepared.write_card(prepared.card)
        with disable_run_logger():
            ingest_flow.ingest_dataset.fn(prepared.settings.datasets[0], prepared.settings.ingestion, prepared.settings.pacs)
            ingest_flow.version_data.fn()
            curate_flow.curate_volumes.fn(prepared.settings)
            assert curate_flow.validate_corpus.fn().passed
        prepared.mark_model()
        yield prepared


def _settings(root: Path) -> Settings:
    settings = load_settings(str(tiny_profile(root, patients=4)))
    return settings.model_copy(update={"datasets": (DatasetSettings(card=CARD, path=root / "source"),)})


def executed(installation: Installation, settings: Settings, copy: Path) -> dict[str, bool]:
    """Return for each step whether a run would execute it, from the decisions of the components."""
    home, card = installation.home, load_card(CARD)
    recipe = read_json(home.data / CARD / "manifest.json")["recipe"]
    steps = {f"read {CARD}": output_recipe(card, load_key(settings.ingestion, home)) != recipe}
    shutil.copytree(home.curated, copy)
    before = (copy / SUMMARY).stat().st_ino
    curate(home.data, [card], copy, settings.curation)
    steps["curate"] = (copy / SUMMARY).stat().st_ino != before
    report = current_report(copy, home.validation)
    steps["validate"] = report is None or not report.passed
    corpus = Corpus.open(copy).digest
    jobs = stage_jobs(corpus, settings, home)
    steps |= {stage: not (job.folder / "done.json").exists() for stage, job in zip(STAGES, jobs, strict=True)}
    if steps[STAGES[-1]]:
        return {**steps, "evaluate": True, "register": True}
    inputs = evaluation_inputs(jobs[-1].folder / "model", corpus, settings.evaluation, settings.seed)
    steps["evaluate"] = not is_sealed(home.evaluations / inputs.digest[:SHORT])
    registration = RegistrationInputs(inputs.weights, inputs.digest, pinned_data(home), settings.digest())
    steps["register"] = not registration.match(installation.tags)
    return steps


def compare(installation: Installation, settings: Settings, copy: Path) -> dict[str, str]:
    """Check every announced state against the run; return the plan."""
    announced = {step.step: step.state for step in plan(settings, installation.home)}
    run = executed(installation, settings, copy)
    assert list(announced) == list(run)
    upstream_runs = False
    for step, state in announced.items():
        if state == "depends":
            assert upstream_runs, f"{step}: announced as dependent on nothing"
        elif not upstream_runs or state == "reused":  # below a step that runs, the copy of the data is still the old one
            assert (state == "runs") == run[step], f"{step}: announced as {state}, {'runs' if run[step] else 'does not run'}"
        upstream_runs = upstream_runs or state == "runs"
    return announced


def test_without_a_change_everything_is_reused(installation: Installation, tmp_path: Path) -> None:
    assert set(compare(installation, installation.settings, tmp_path / "copy").values()) == {"reused"}


@pytest.mark.parametrize("name", card_fields())
def test_a_changed_card_field_runs_the_announced_steps(installation: Installation, name: str, tmp_path: Path) -> None:
    *sections, leaf = name.split(".")
    card = yaml.safe_load(yaml.safe_dump(installation.card))
    owner = card[sections[0]] if sections else card
    if name in CARD_VALUES:
        owner[leaf] = CARD_VALUES[name]
    else:
        card = changed(DatasetCard, DatasetCard.model_validate(card).model_dump(mode="json"), name)
    try:
        installation.write_card(card)
        assert load_card(CARD) != DatasetCard.model_validate(installation.card)
        compare(installation, installation.settings, tmp_path / "copy")
    finally:
        installation.write_card(installation.card)


def test_a_corrected_patient_count_is_announced_and_named(installation: Installation) -> None:
    try:
        installation.write_card({**installation.card, "patients": 3})
        steps = {step.step: step for step in plan(installation.settings, installation.home)}
    finally:
        installation.write_card(installation.card)
    assert (steps["curate"].state, steps["curate"].why) == ("runs", f"card of {CARD} changed")
    assert {steps[stage].state for stage in STAGES} == {"depends"}


@pytest.mark.parametrize("name", list(setting_fields()))
def test_a_changed_setting_runs_the_announced_steps(installation: Installation, name: str, tmp_path: Path) -> None:
    raw = installation.settings.model_dump(mode="json")
    settings = Settings.model_validate(changed(Settings, raw, name))
    compare(installation, settings, tmp_path / "copy")


@pytest.mark.parametrize("name", ["key_file", "tokenizer", "backbone", "adapter_rank", "path"])
def test_a_changed_file_or_folder_of_the_settings_runs_the_announced_steps(
    installation: Installation, name: str, tmp_path: Path
) -> None:
    settings, folder = installation.settings, tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"0" * 32)
    if name == "key_file":
        ingestion = settings.ingestion.model_copy(update={"key_file": folder / "file", "public_demo_key": False})
        settings = settings.model_copy(update={"ingestion": ingestion})
    elif name == "path":
        (dataset,) = settings.datasets
        other = dataset.model_copy(update={"path": write_cohort(tmp_path / "source", 4)})
        settings = settings.model_copy(update={"datasets": (other,)})
        assert plan(settings, installation.home)[0].state == "runs"  # other times: the files are read again, and found unchanged
        return
    else:
        folders = {"tokenizer": folder, "backbone": folder if name != "tokenizer" else None}
        adapters = {"adapter_rank": 4 if name == "adapter_rank" else 0}
        changed = {"model": settings.model.model_copy(update=folders), "training": settings.training.model_copy(update=adapters)}
        settings = settings.model_copy(update=changed)
    compare(installation, settings, tmp_path / "copy")


def test_planning_writes_nothing(installation: Installation) -> None:
    before = tree(installation.home.root)
    plan(installation.settings, installation.home)
    assert tree(installation.home.root) == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("change", ["nothing", "patients", "training.instruction_tuning.steps"])
def test_a_full_run_executes_the_announced_steps(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Run the whole pipeline twice, with four real training stages, and compare the second run with its plan."""
    from flows.pipeline import pipeline

    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    home, settings = Home.open(), _settings(tmp_path)
    home.cards.mkdir(parents=True)
    card = load_card("synthetic-brain-nifti").model_dump(mode="json", exclude_defaults=True, exclude={"generated"}) | {"id": CARD}
    (home.cards / f"{CARD}.yaml").write_text(yaml.safe_dump(card))
    pipeline(settings)
    if change == "patients":
        (home.cards / f"{CARD}.yaml").write_text(yaml.safe_dump({**card, "patients": 11}))
    elif change != "nothing":
        settings = Settings.model_validate(changed(Settings, settings.model_dump(mode="json"), change))
    announced = {step.step: step.state for step in plan(settings, home)}
    corpus, folders = (home.curated / SUMMARY).stat().st_ino, set(home.training.glob("*/done.json"))
    pipeline(settings)
    trained = len(set(home.training.glob("*/done.json")) - folders)
    assert (announced["curate"] == "runs") == ((home.curated / SUMMARY).stat().st_ino != corpus)
    if "depends" not in announced.values():
        assert trained == sum(announced[stage] == "runs" for stage in STAGES)
    assert {step.state for step in plan(settings, home)} == {"reused"}
