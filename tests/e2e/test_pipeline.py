"""One command takes the samples through the whole chain, a second finds everything done, and the model answers."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from components.registries import TASKS

OMNIMRI = [sys.executable, "-m", "flows.cli"]


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
def first(environment: dict[str, str]) -> dict[str, Any]:
    report: dict[str, Any] = _omnimri(environment, "run", "--profile", "debug", "--json")
    return report


@pytest.mark.timeout(900)
def test_the_chain_ends_with_a_staged_model(first: dict[str, Any]) -> None:
    assert set(first["model"]["aliases"]) == {"candidate", "staging"}
    assert {row["task"] for row in first["rows"]} == set(TASKS)
    assert Path(first["report"]).is_file() and Path(first["data_docs"]).is_file()
    assert first["model"]["tags"]["data_digest"] == first["data_digest"]
    assert first["model"]["tags"]["validation_passed"] == "True"


@pytest.mark.timeout(300)
def test_a_second_run_does_nothing_twice(environment: dict[str, str], first: dict[str, Any]) -> None:
    started = time.monotonic()
    second = _omnimri(environment, "run", "--profile", "debug", "--json")
    assert time.monotonic() - started < 90
    for name in ("data_digest", "corpus_digest", "rows", "model", "run_id"):
        assert second[name] == first[name]
    assert second["seconds"]["train"] < 20


@pytest.mark.timeout(300)
def test_the_staged_model_answers_about_a_real_image(environment: dict[str, str], first: dict[str, Any], tmp_path: Path) -> None:
    image = next((Path(environment["OMNIMRI_HOME"]) / "sources" / "icbm152-2009").glob("*_t1_*.nii.gz"))
    answer = _omnimri(environment, "predict", str(image), "Segment the white matter.", "--out", str(tmp_path), "--json")
    assert answer["task"] in TASKS and all(Path(path).is_file() for path in answer["files"])


@pytest.mark.timeout(300)
def test_what_was_done_can_be_looked_at(environment: dict[str, str], first: dict[str, Any]) -> None:
    import mlflow

    client = mlflow.MlflowClient(first["tracking_uri"])
    parent = client.get_run(first["run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["omnimri.data_digest"] == first["data_digest"]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{first['run_id']}'")
    assert len(children) == 4 and all(child.info.status == "FINISHED" and child.inputs.dataset_inputs for child in children)
    listed = _omnimri(environment, "models", "list", "--json")
    assert [version["version"] for version in listed["versions"]] == [first["model"]["version"]]


@pytest.mark.timeout(120)
def test_wrong_use_ends_with_status_two_and_the_remedy(environment: dict[str, str]) -> None:
    assert "choose one of" in _omnimri(environment, "run", "--profile", "nowhere", status=2).stderr
    assert "models list" in _omnimri(environment, "models", "show", "77", status=2).stderr
