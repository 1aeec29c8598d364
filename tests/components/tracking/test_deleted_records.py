"""Runs and experiments that somebody deleted with MLflow's tools: the work goes on in new ones, or the remedy is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import JobFailed
from components.home import Home
from components.settings import load_settings
from components.tracking import Journal, Tracking
from components.tracking.runs import open_client
from tests.helpers.mlflow_store import create_store


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    home = Home(tmp_path_factory.mktemp("home"), Path("unused"))
    return Tracking(f"sqlite:///{create_store(home.mlflow / 'mlflow.db')}", home)


def test_a_pipeline_whose_run_was_deleted_gets_a_new_one(tracking: Tracking) -> None:
    settings = load_settings("debug")
    first = tracking.pipeline_run("digest", settings, "data", {})
    assert tracking.pipeline_run("digest", settings, "data", {}) == first and tracking.is_active(first)
    open_client(tracking.uri, tracking.home).delete_run(first)
    assert not tracking.is_active(first) and not tracking.is_active("0" * 32)
    assert tracking.pipeline_run("digest", settings, "data", {}) != first


def test_records_of_a_deleted_run_wait_for_its_restoration(
    tracking: Tracking, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client = open_client(tracking.uri, tracking.home)
    run_id = tracking.create_stage_run("alignment", "digest", None, {})
    client.delete_run(run_id)
    journal = Journal.open(tmp_path, run_id)
    journal.set_tag("note", "kept")
    assert not journal.deliver(tracking, [{"step": 0, "loss": 1.0}])
    assert "mlflow runs restore" in capsys.readouterr().out
    client.restore_run(run_id)
    assert Journal.open(tmp_path, run_id).deliver(tracking, [{"step": 0, "loss": 1.0}])
    assert client.get_run(run_id).data.tags["note"] == "kept"


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_cut_journal_is_sent_again(tracking: Tracking, tmp_path: Path, content: str) -> None:
    (tmp_path / "journal.json").write_text(content)
    assert Journal.open(tmp_path, "run").delivered == []


def test_a_deleted_experiment_is_named_with_the_command_that_restores_it(tracking: Tracking) -> None:
    client = open_client(tracking.uri, tracking.home)
    tracking.pipeline_run("another", load_settings("debug"), "data", {})
    experiment = client.get_experiment_by_name("omnimri")
    assert experiment is not None
    client.delete_experiment(experiment.experiment_id)
    try:
        with pytest.raises(JobFailed, match=f"mlflow experiments restore --experiment-id {experiment.experiment_id}"):
            tracking.pipeline_run("a third", load_settings("debug"), "data", {})
    finally:
        client.restore_experiment(experiment.experiment_id)
