"""One command takes the sample data through the whole pipeline, a second run reuses everything, and the model answers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from components.registries import STAGES, TASKS

OMNIMRI = [sys.executable, "-m", "flows.cli"]
STEP_LINE = re.compile(r"[a-z][\w -]* +\S.* \(\d+\.\d s\)")
MAX_LINES = 60


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("installation")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    return {**clean, "OMNIMRI_HOME": str(root / "home"), "OMNIMRI_DATA": str(root / "data")}


def _omnimri(environment: dict[str, str], *arguments: str, status: int = 0) -> Any:
    done = subprocess.run([*OMNIMRI, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stderr[-4000:]
    return json.loads(done.stdout) if "--json" in arguments else done


@pytest.fixture(scope="module")
def first(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The first run, as a user sees it."""
    done: subprocess.CompletedProcess[str] = _omnimri(environment, "run", "--profile", "debug")
    return done


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], first: subprocess.CompletedProcess[str]) -> dict[Path, int]:
    """The results of the first run: files that are written last, and their inode numbers."""
    home = Path(environment["OMNIMRI_HOME"])
    patterns = ("curated/corpus.json", "gx/*.json", "training/*/done.json", "evaluations/*/results.json")
    return {path: path.stat().st_ino for pattern in patterns for path in home.glob(pattern)}


@pytest.fixture(scope="module")
def second(environment: dict[str, str], trained: dict[Path, int]) -> dict[str, Any]:
    """The report of a second run."""
    report: dict[str, Any] = _omnimri(environment, "run", "--profile", "debug", "--json")
    return report


@pytest.mark.timeout(900)
def test_a_first_run_prints_one_line_a_step_and_the_results(
    environment: dict[str, str], first: subprocess.CompletedProcess[str]
) -> None:
    lines = first.stderr.splitlines()
    steps, log = lines[:-1], lines[-1]
    assert all(STEP_LINE.fullmatch(line) for line in steps), first.stderr
    names = [line.split("  ")[0] for line in steps]
    assert names[0] == "start" and set(STAGES) <= set(names) and {"curate", "validate", "evaluate", "register"} <= set(names)
    assert len(names) == len(set(names))
    assert "Held-out patients" in first.stdout and "omnimri predict" in first.stdout
    assert len(lines) + len(first.stdout.splitlines()) <= MAX_LINES
    path = Path(log.removeprefix("log: "))
    assert "Flow run 'pipeline debug'" in path.read_text() and not re.search("warning|INFO|it/s", first.stdout + first.stderr, re.I)


@pytest.mark.timeout(600)
def test_the_pipeline_ends_with_a_staged_model(second: dict[str, Any]) -> None:
    assert set(second["model"]["aliases"]) == {"candidate", "staging"}
    assert {row["task"] for row in second["rows"]} == set(TASKS)
    assert Path(second["report"]).is_file() and Path(second["data_docs"]).is_file()
    assert second["model"]["tags"]["data_digest"] == second["data_digest"]
    assert second["model"]["tags"]["validation_passed"] == "True"


@pytest.mark.timeout(600)
def test_a_second_run_reuses_every_result(environment: dict[str, str], second: dict[str, Any], trained: dict[Path, int]) -> None:
    assert {path: path.stat().st_ino for path in trained} == trained
    home = Path(environment["OMNIMRI_HOME"])
    assert len(list(home.glob("training/*/done.json"))) == len(STAGES)
    assert len(list(home.glob("evaluations/*/results.json"))) == 1
    steps = _omnimri(environment, "run", "--profile", "debug", "--dry-run", "--json")["steps"]
    assert {step["state"] for step in steps} == {"reused"}


@pytest.mark.timeout(300)
def test_the_staged_model_answers_about_a_real_image(environment: dict[str, str], second: dict[str, Any], tmp_path: Path) -> None:
    image = next((Path(environment["OMNIMRI_HOME"]) / "sources" / "icbm152-2009").glob("*_t1_*.nii.gz"))
    answer = _omnimri(environment, "predict", str(image), "Segment the white matter.", "--out", str(tmp_path), "--json")
    assert answer["task"] in TASKS and all(Path(path).is_file() for path in answer["files"])


@pytest.mark.timeout(300)
def test_the_runs_are_tracked(environment: dict[str, str], second: dict[str, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(second["tracking_uri"])
    parent = client.get_run(second["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["omnimri.data_digest"] == second["data_digest"]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{second['run_id']}'")
    assert len(children) == 4 and all(child.info.status == "FINISHED" and child.inputs.dataset_inputs for child in children)
    listed = _omnimri(environment, "models", "list", "--json")
    assert [version["version"] for version in listed["versions"]] == [second["model"]["version"]]


@pytest.mark.timeout(120)
def test_wrong_usage_ends_with_status_two_and_a_remedy(environment: dict[str, str], second: dict[str, Any]) -> None:
    assert "models list" in _omnimri(environment, "models", "show", "77", status=2).stderr
