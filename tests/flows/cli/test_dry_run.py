"""``--dry-run`` prints the objects that a cluster would get: valid and complete, without contacting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from components.errors import BadInput
from flows.cli.main import app
from tests.helpers.manifest_checks import NEWEST, pod_specs, schema_faults, security_faults


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_the_whole_pipeline_at_the_papers_scale_is_four_valid_jobs() -> None:
    text = printed("run", "--profile", "paper", "--dry-run")
    objects = list(yaml.safe_load_all(text))
    assert [thing["kind"] for thing in objects] == ["JobSet"] * 4
    assert len({thing["metadata"]["name"] for thing in objects}) == 4
    assert "\n# No corpus yet" in text and "OMNIMRI_HOME=/state/omnimri" in text
    for thing in objects:
        assert schema_faults(thing, NEWEST[-1]) == []
        (pod,) = pod_specs(thing)
        assert security_faults(pod) == []
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"


@pytest.mark.parametrize(("rendering", "kinds"), [("job", ["Job", "Service"]), ("trainjob", ["TrainingRuntime", "TrainJob"])])
def test_one_stage_on_nodes_named_on_the_command_line(rendering: str, kinds: list[str]) -> None:
    words = ("train", "--stage", "1", "--launcher", "kubernetes", "--nodes", "2", "--gpus", "4", "--dry-run", "--json")
    objects = json.loads(printed(*words, "--set", f"kubernetes.rendering={rendering}"))["objects"]
    assert [thing["kind"] for thing in objects] == kinds
    (pod,) = [pod for thing in objects for pod in pod_specs(thing)]
    assert {"--nodes=2", "--processes=4"} <= set(pod["containers"][0]["args"])


def test_the_launcher_of_the_profile_is_enough_for_nodes_and_gpus() -> None:
    words = ("train", "--profile", "paper", "--stage", "1", "--nodes", "4", "--gpus", "8", "--dry-run")
    (thing,) = yaml.safe_load_all(printed(*words))
    assert thing["kind"] == "JobSet"


@pytest.mark.parametrize("words", [("train", "--dry-run"), ("train", "--nodes", "2"), ("run", "--launcher", "moon")])
def test_contradictory_options_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(BadInput):
        CliRunner().invoke(app, list(words), catch_exceptions=False)
