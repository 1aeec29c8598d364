"""The plan names what would run and why. That it is what then happens is told with a real server (``test_orchestration.py``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.home import Home
from components.settings import STAGES, Settings, load_settings
from components.training import stage_jobs
from flows.steps import plan, reasons, remember, stage_inputs
from tests.helpers.corpora import tiny_corpus


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a corpus."""
    tiny_corpus(tmp_path / "curated")
    return Home(tmp_path, tmp_path / "data")


def trained(home: Home, settings: Settings) -> None:
    """Leave what trained stages leave."""
    from components.curation.corpus import Corpus

    corpus, parent = Corpus.open(home.curated).digest, ""
    for stage, job in zip(STAGES, stage_jobs(corpus, settings, home, STAGES[-1]), strict=True):
        job.folder.mkdir(parents=True)
        (job.folder / "done.json").write_text("{}")
        remember(home, stage, stage_inputs(stage, settings, corpus, parent), job.folder / "done.json")
        parent = job.folder.name


def stages(settings: Settings, home: Home) -> dict[str, tuple[str, str]]:
    return {one.step: (one.state, one.why) for one in plan(settings, home) if one.step in STAGES}


def test_before_the_first_run_everything_runs(tmp_path: Path) -> None:
    steps = plan(load_settings("debug"), Home(tmp_path, tmp_path / "data"))
    assert {one.state for one in steps} == {"runs"}
    assert [one.step for one in steps][-8:] == ["curate", "validate", *STAGES, "evaluate", "register"]
    assert not any(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize(
    ("override", "first", "why"),
    [
        ("training.alignment.steps=5", 1, "settings: training.alignment changed"),
        ("seed=7", 0, "seed changed"),
        ("model.vocabulary=300", 0, "settings: model changed"),
    ],
)
def test_a_changed_setting_is_named_and_what_hangs_on_it_runs(home: Home, override: str, first: int, why: str) -> None:
    settings = load_settings("debug")
    trained(home, settings)
    before, now = stages(settings, home), stages(load_settings("debug", [override]), home)
    assert {state for state, _ in before.values()} == {"depends"}, "the sources have not been read yet"
    assert [now[stage][0] for stage in STAGES] == ["depends"] * first + ["runs"] * (4 - first)
    assert now[STAGES[first]][1] == why
    assert all("the stage before changed" in now[stage][1] for stage in STAGES[first + 1 :])


def test_work_that_is_gone_runs_again(home: Home) -> None:
    settings = load_settings("debug")
    trained(home, settings)
    for done in (home.training).glob("*/done.json"):
        done.unlink()
    assert {state for state, _ in stages(settings, home).values()} == {"runs"}
    assert stages(settings, home)[STAGES[0]][1] == "done.json is not what it left"


def test_going_back_to_what_was_done_before_needs_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "data")
    (tmp_path / "result").write_text("result")
    for value in ("a", "b"):
        remember(home, "step", {"input": value}, tmp_path / "result")
    assert reasons(home, "step", {"input": "a"}) == reasons(home, "step", {"input": "b"}) == []
    assert reasons(home, "step", {"input": "c", "other": ""}) == ["input", "other"]
    (tmp_path / "result").write_text("something else")
    assert reasons(home, "step", {"input": "a"}) == ["result is not what it left"]
