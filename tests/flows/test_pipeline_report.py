"""A run that would change nothing is answered with the report of the last one; anything that a run would do makes it run.

What the plan says is given here (``test_plan_equals_run.py`` compares it with runs); files and MLflow's store are real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest

from components.errors import JobFailed
from components.evaluation import ResultRow
from components.home import Home
from components.registry import ModelVersion
from components.registry.inputs import RegistrationInputs
from components.settings import Settings, load_settings
from flows import pipeline_report
from flows.pipeline_report import PipelineReport, data_state, find_unchanged_run, record_run
from flows.steps import PlannedStep
from tests.helpers.mlflow_store import create_store

INPUTS = RegistrationInputs("weights", "evaluation", "data", "settings")
REUSED = [PlannedStep("curate", "reused", "its inputs are the same"), PlannedStep("register", "reused", "its inputs are the same")]
ROWS = (
    ResultRow("segmentation", "Dice, gray matter", True, 0.8, {"atlas": 0.6}, "better", 40, 20, (0.7, 0.9)),
    ResultRow("report", "field F1", True, 0.7, {}, "no difference", 40, 20),
)


class Finished:
    """A home with a finished run, whose version is in staging."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.settings = Home(root / "home", root / "data"), load_settings("debug")
        create_store(self.home.mlflow / "mlflow.db")
        (self.home.data / "cohort").mkdir(parents=True)
        self.image = self.home.data / "cohort" / "image.nii"
        self.image.write_bytes(b"image")
        self.store = mlflow.MlflowClient(self.home.local_store)
        self.store.create_registered_model("omnimri")
        self.model = root / "model"
        self.model.mkdir()
        self.store.create_model_version("omnimri", self.model.as_uri())
        self.store.set_registered_model_alias("omnimri", "staging", "1")
        self.plan = (REUSED, INPUTS)
        self.fault: Exception | None = None
        monkeypatch.setattr(pipeline_report, "plan_run", self.plan_run)
        self.report = PipelineReport(
            profile="debug",
            data_digest="data",
            corpus_digest="corpus",
            volumes=8,
            quarantined=1,
            rows=ROWS,
            model=ModelVersion("omnimri", "1", ("candidate", "staging"), {"data_digest": "data"}),
            run_id="run",
            report=self.home.evaluations / "0" / "report.html",
            data_docs=self.home.validation / "index.html",
            tracking_uri=self.home.tracking_uri,
            seconds={"train": 60.0},
            peak_memory_mib=2000,
            refused="",
        )
        record_run(self.home, INPUTS, data_state(self.home), self.report)

    def plan_run(self, settings: Settings, home: Home) -> tuple[list[PlannedStep], RegistrationInputs]:
        if self.fault is not None:
            raise self.fault
        return self.plan

    def found(self) -> PipelineReport | None:
        return find_unchanged_run(self.settings, self.home)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Finished:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Finished(tmp_path, monkeypatch)


def test_an_unchanged_run_has_the_report_of_the_last_one_with_its_own_time_and_todays_aliases(finished: Finished) -> None:
    found = finished.found()
    assert found is not None
    assert list(found.seconds) == ["check"]
    assert found.model.aliases == ("staging",)
    same = {"seconds": finished.report.seconds, "peak_memory_mib": 2000, "model": finished.report.model}
    assert replace(found, **same) == finished.report


def _interrupt_curation(finished: Finished) -> None:
    finished.fault = JobFailed("the last update was interrupted", where="curated", remedy="run it again")


def _lose_a_folder_during_the_check(finished: Finished) -> None:
    finished.fault = FileNotFoundError("data/cohort")


def _damage_the_corpus(finished: Finished) -> None:
    finished.fault = ValueError("Expecting value: line 1 column 1")


def _replace_the_remote(finished: Finished) -> None:
    folder = finished.home.data.parent / ".dvc"
    folder.mkdir()
    (folder / "config").write_text("[core]\n    remote = another\n")


def _change_an_image_during_the_run(finished: Finished) -> None:
    versioned = data_state(finished.home)
    finished.image.write_bytes(b"another image")
    record_run(finished.home, INPUTS, versioned, finished.report)


def _leave_staging_for_production(finished: Finished) -> None:
    finished.store.set_registered_model_alias("omnimri", "production", "1")
    finished.store.delete_registered_model_alias("omnimri", "staging")


def _change_an_image(finished: Finished) -> None:
    finished.image.write_bytes(b"another image")


def _add_an_image(finished: Finished) -> None:
    (finished.home.data / "cohort" / "new.nii").touch()


def _plan_work(finished: Finished) -> None:
    finished.plan = ([*REUSED, PlannedStep("evaluate", "runs", "code changed")], INPUTS)


def _plan_dependent_work(finished: Finished) -> None:
    finished.plan = ([*REUSED, PlannedStep("evaluate", "depends", "runs if curate changes its inputs")], INPUTS)


def _change_inputs(finished: Finished) -> None:
    finished.plan = (REUSED, replace(INPUTS, settings="others"))


def _leave_staging(finished: Finished) -> None:
    finished.store.delete_registered_model_alias("omnimri", "staging")


def _delete_the_version(finished: Finished) -> None:
    finished.store.delete_model_version("omnimri", "1")


def _lose_the_files_of_the_version(finished: Finished) -> None:
    finished.model.rmdir()


def _refuse(finished: Finished) -> None:
    record_run(finished.home, INPUTS, data_state(finished.home), replace(finished.report, refused="worse than version 1"))


def _damage_the_record(finished: Finished) -> None:
    for path in finished.home.finished_runs.iterdir():
        path.write_text(path.read_text()[:40])


def _write_an_older_form(finished: Finished) -> None:
    for path in finished.home.finished_runs.iterdir():
        path.write_text(path.read_text().replace('"volumes"', '"images"'))


def _write_another_record(finished: Finished) -> None:
    for path in finished.home.finished_runs.iterdir():
        path.write_text("{}")


def _train_on_a_cluster(finished: Finished) -> None:
    finished.settings = Settings.model_validate({**finished.settings.model_dump(), "launcher": "kubernetes"})


@pytest.mark.parametrize(
    "change",
    [
        _interrupt_curation,
        _lose_a_folder_during_the_check,
        _damage_the_corpus,
        _replace_the_remote,
        _change_an_image_during_the_run,
        _leave_staging_for_production,
        _change_an_image,
        _add_an_image,
        _plan_work,
        _plan_dependent_work,
        _change_inputs,
        _leave_staging,
        _delete_the_version,
        _lose_the_files_of_the_version,
        _refuse,
        _damage_the_record,
        _write_an_older_form,
        _write_another_record,
        _train_on_a_cluster,
    ],
)
def test_a_run_is_needed_after_a_change(finished: Finished, change: Callable[[Finished], None]) -> None:
    assert finished.found() is not None
    change(finished)
    assert finished.found() is None


def test_a_run_is_needed_where_a_server_keeps_the_versions(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert finished.found() is None


def test_a_moved_home_has_its_pages_in_the_new_place(finished: Finished) -> None:
    moved = Home(finished.home.root.with_name("moved"), finished.home.data)
    finished.home.root.rename(moved.root)
    found = find_unchanged_run(finished.settings, moved)
    assert found is not None
    assert (found.report, found.data_docs) == (moved.evaluations / "0" / "report.html", moved.validation / "index.html")
    assert found.tracking_uri == moved.local_store
