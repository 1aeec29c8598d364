"""A home is moved or copied: MLflow's store finds its artifacts at the new place, and the old place is left alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from components.doctor import examine
from components.errors import BadInput
from components.home import Home
from components.provenance import REPOSITORY
from components.settings import load_settings
from components.tracking import Tracking
from components.tracking.relocation import former_roots, relocate, require_own_artifacts
from tests.helpers.datasets import tree
from tests.helpers.mlflow_store import create_store

OPENED = """
from components.home import Home
from components.tracking.runs import EXPERIMENT, find_experiment, open_client
home = Home.open()
find_experiment(open_client(home.tracking_uri, home), EXPERIMENT, home)
"""


def open_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("OMNIMRI_HOME", str(root))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home.open()
    if not home.mlflow.exists():
        create_store(home.mlflow / "mlflow.db")
    return home


def log_run(home: Home, digest: str) -> str:
    """Log a run with one artifact; return its id."""
    tracking = Tracking(home.tracking_uri, home)
    run_id = tracking.pipeline_run(digest, load_settings("debug"), "data", {})
    note = home.root / "note.txt"
    note.write_text(digest)
    tracking.run(run_id).log_file(note, Path("notes"))
    return run_id


def read_artifact(home: Home, run_id: str) -> str:
    Tracking(home.tracking_uri, home).run(run_id)
    return str(mlflow.artifacts.load_text(f"runs:/{run_id}/notes/note.txt"))


@pytest.mark.parametrize("name", ["plain", "a b", "ümlaut", "a?b", "50%41", "a#b"])
def test_a_moved_home_finds_its_artifacts_and_does_not_create_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old, new = tmp_path / "old", tmp_path / name
    run_id = log_run(open_home(old, monkeypatch), "first")
    old.rename(new)
    home = open_home(new, monkeypatch)
    assert read_artifact(home, run_id) == "first"
    assert read_artifact(home, log_run(home, "second")) == "second"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_copied_home_does_not_write_into_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = log_run(open_home(tmp_path / "original", monkeypatch), "first")
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    before = tree(tmp_path / "original")
    copy = open_home(tmp_path / "copy", monkeypatch)
    log_run(copy, "second")
    assert read_artifact(copy, run_id) == "first" and tree(tmp_path / "original") == before


def test_a_home_that_was_copied_before_its_first_artifact_does_not_write_into_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = open_home(tmp_path / "original", monkeypatch)
    Tracking(home.tracking_uri, home).pipeline_run("empty", load_settings("debug"), "data", {})
    shutil.copytree(tmp_path / "original", tmp_path / "copy")
    log_run(home, "first")  # the original goes on and stores its first artifact
    before = tree(tmp_path / "original")
    copy = open_home(tmp_path / "copy", monkeypatch)
    assert read_artifact(copy, log_run(copy, "second")) == "second" and tree(tmp_path / "original") == before


def test_the_doctor_reports_a_move_until_the_store_is_relocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_run(open_home(tmp_path / "old", monkeypatch), "first")
    (tmp_path / "old").rename(tmp_path / "new")
    home = open_home(tmp_path / "new", monkeypatch)
    assert [finding for finding in examine(home) if finding.name == "location"]
    assert relocate(home) > 0 and relocate(home) == 0 and not former_roots(home)


def test_artifacts_that_were_placed_outside_of_the_home_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, shared = open_home(tmp_path / "home", monkeypatch), tmp_path / "shared" / "mlflow" / "artifacts"
    shared.mkdir(parents=True)
    mlflow.MlflowClient(home.tracking_uri).create_experiment("omnimri", artifact_location=shared.as_uri())
    assert not former_roots(home)


def test_a_database_outside_of_a_moved_home_is_refused_until_the_old_place_leads_to_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with PostgreSQL, which does not move with the home."""
    old, new = tmp_path / "old", tmp_path / "a new one"
    database = f"sqlite:///{create_store(tmp_path / 'outside.db')}"
    home = open_home(old, monkeypatch)
    location = (home.mlflow / "artifacts").as_uri()
    mlflow.MlflowClient(database).create_experiment("omnimri", artifact_location=location)
    (home.mlflow / "artifacts").mkdir()
    assert require_own_artifacts(database, home) == []
    shutil.copytree(old, new)
    moved = open_home(new, monkeypatch)
    assert require_own_artifacts(database, moved) == [str(home.mlflow / "artifacts")]
    shutil.rmtree(old)
    with pytest.raises(BadInput, match="which do not exist") as refused:
        require_own_artifacts(database, moved)
    subprocess.run(["bash", "-c", refused.value.remedy.partition("the new one: ")[2]], check=True)
    assert require_own_artifacts(database, moved) == []


def test_processes_that_open_a_new_store_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    """MLflow creates its tables step by step, and a second process would begin in the middle."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_TRACKING", "OMNIMRI_"))}
    environment["OMNIMRI_HOME"] = str(tmp_path)
    command = [sys.executable, "-c", OPENED]
    processes = [subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
