"""The plan names the steps that would run, and the changed inputs. ``test_plan_equals_run.py`` compares it with runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.home import Home
from components.registries import STAGES as REGISTERED_STAGES
from components.settings import Settings, load_settings
from components.training import stage_inputs, stage_jobs
from flows.steps import changes, plan, record_step
from tests.helpers.corpora import tiny_corpus

STAGES = REGISTERED_STAGES.built_in


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a corpus."""
    tiny_corpus(tmp_path / "curated")
    return Home(tmp_path, tmp_path / "data")


def mark_trained(home: Home, settings: Settings) -> None:
    """Write the files that mark the stages as trained."""
    from components.curation.corpus import Corpus

    corpus, parent = Corpus.open(home.curated).digest, ""
    for stage, job in zip(STAGES, stage_jobs(corpus, settings, home), strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "done.json").write_text("{}")
        (job.folder / "model").mkdir()
        for name in ("config.json", "model.safetensors"):
            (job.folder / "model" / name).touch()
        record_step(home, stage, stage_inputs(stage, settings, corpus, parent), job.folder / "done.json")
        parent = job.identity


def stages(settings: Settings, home: Home) -> dict[str, tuple[str, str]]:
    return {step.step: (step.state, step.why) for step in plan(settings, home) if step.step in STAGES}


def test_before_the_first_run_everything_runs(tmp_path: Path) -> None:
    steps = plan(load_settings("debug"), Home(tmp_path, tmp_path / "data"))
    assert {step.state for step in steps} == {"runs"}
    assert [step.step for step in steps][-8:] == ["curate", "validate", *STAGES, "evaluate", "register"]
    assert not any(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize(
    ("override", "first", "why"),
    [
        ("training.alignment.steps=5", 1, "settings: training.alignment changed"),
        ("seed=7", 0, "seed changed"),
        ("model.vocabulary=300", 0, "settings: model changed"),
    ],
)
def test_a_changed_setting_is_named_and_its_dependents_run(home: Home, override: str, first: int, why: str) -> None:
    settings = load_settings("debug")
    mark_trained(home, settings)
    before, now = stages(settings, home), stages(load_settings("debug", [override]), home)
    assert {state for state, _ in before.values()} == {"depends"}, "the sources have not been ingested yet"
    assert [now[stage][0] for stage in STAGES] == ["depends"] * first + ["runs"] * (4 - first)
    assert now[STAGES[first]][1] == why
    assert all("parent stage changed" in now[stage][1] for stage in STAGES[first + 1 :])


def test_a_stage_without_its_result_runs_again(home: Home) -> None:
    settings = load_settings("debug")
    mark_trained(home, settings)
    for done in (home.training).glob("*/done.json"):
        done.unlink()
    assert {state for state, _ in stages(settings, home).values()} == {"runs"}
    assert stages(settings, home)[STAGES[0]][1] == "done.json has changed"


def test_a_return_to_earlier_inputs_changes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "data")
    (tmp_path / "result").write_text("result")
    for value in ("a", "b"):
        record_step(home, "step", {"input": value}, tmp_path / "result")
    assert changes(home, "step", {"input": "a"}) == changes(home, "step", {"input": "b"}) == []
    assert changes(home, "step", {"input": "c", "other": ""}) == ["input changed", "other changed"]
    (tmp_path / "result").write_text("something else")
    assert changes(home, "step", {"input": "a"}) == ["result has changed"]
