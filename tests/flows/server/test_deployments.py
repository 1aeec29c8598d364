"""Deployments, events, plans and artifacts with a real Prefect server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.utilities.processutils import command_from_string

from components.errors import GateRefused
from components.home import Home
from components.settings import load_settings
from components.versioning.source_state import SourceState
from flows.server.deploy import Deployment, create_pool, deploy
from flows.server.recovery import recover
from flows.server.watcher import announce
from flows.steps import plan
from tests.helpers.datasets import write_patient
from tests.helpers.served import tiny_profile, wait


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    return Home.open()


def request(method: str, address: str, **body: Any) -> Any:
    """Ask the server as Prefect's clients do: again while its database is locked (503, on a busy machine)."""

    def answered() -> httpx.Response | None:
        answer = httpx.request(method, address, timeout=300, **({"json": body} if body or method == "POST" else {}))
        return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

    answer = wait(answered, 300, address)
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


def ask(server: str, path: str, **body: Any) -> Any:
    return request("POST", f"{server}{path}", **body)


@pytest.fixture(scope="module")
def deployed(server: str) -> dict[str, Any]:
    """Deployments by name, after deploying twice."""
    for goal in (False, True):
        deploy(Deployment(profile="debug", train_on_update=goal, gpu_limit=3))
    return {found["name"]: found for found in ask(server, "/deployments/filter")}


def test_deploying_again_duplicates_nothing(server: str, deployed: dict[str, Any]) -> None:
    assert sorted(deployed) == ["curate", "evaluate", "pipeline", "promote", "train"]
    (automation,) = ask(server, "/automations/filter")
    assert automation["trigger"]["expect"] == ["omnimri.dataset.updated"] and automation["enabled"]
    (schedule,) = deployed["pipeline"]["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *" and not schedule["active"]
    queues = {queue["name"]: queue["concurrency_limit"] for queue in ask(server, "/work_pools/omnimri/queues/filter")}
    assert queues["gpu"] == 3 and deployed["train"]["work_queue_name"] == "gpu"
    assert deployed["curate"]["parameters"] == {"profile": {"name": "debug"}, "goal": "candidate"}


def test_the_same_flows_can_run_in_pods(server: str) -> None:
    create_pool(Deployment(pool="pods", pool_type="kubernetes"))
    answer = request("GET", f"{server}/work_pools/pods")
    assert answer["type"] == "kubernetes"
    assert answer["base_job_template"]["job_configuration"]["job_manifest"]["kind"] == "Job"


def test_runs_start_with_an_interpreter_whose_path_has_a_space(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "a checkout's" / "python"
    interpreter.parent.mkdir()
    interpreter.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    create_pool(Deployment(pool="spaced"))
    template = request("GET", f"{server}/work_pools/spaced")["base_job_template"]
    words = command_from_string(template["variables"]["properties"]["command"]["default"])  # as Prefect's worker splits it
    assert words == [str(interpreter), "-m", "prefect.engine"]


def test_every_field_of_every_form_is_described(deployed: dict[str, Any]) -> None:
    for deployment in deployed.values():
        schema = deployment["parameter_openapi_schema"]
        for form in (schema, *schema.get("definitions", {}).values()):
            for name, field in form.get("properties", {}).items():
                assert field.get("description"), f"{deployment['name']}: {name}"


def test_an_update_starts_a_run_with_the_change_as_parameter(server: str, deployed: dict[str, Any]) -> None:
    announce(SourceState("tag", "data-*", "data-7 0123", "0123456789abcdef0123456789abcdef"))
    deployment = {"id": {"any_": [deployed["curate"]["id"]]}}
    (run,) = wait(lambda: ask(server, "/flow_runs/filter", deployments=deployment), 1000, "run of the automation")
    assert run["parameters"] == {
        "profile": {"name": "debug"},
        "goal": "candidate",
        "change": {"kind": "tag", "name": "data-*", "revision": "0123456789abcdef0123456789abcdef"},
    }
    ask(server, f"/flow_runs/{run['id']}/set_state", state={"type": "CANCELLED"}, force=True)


def test_a_run_that_lost_its_process_is_scheduled_up_to_four_times(server: str, deployed: dict[str, Any]) -> None:
    """Its nested flow runs are ended; a run with a living process is left alone."""
    create = f"/deployments/{deployed['evaluate']['id']}/create_flow_run"
    lost, alive = (ask(server, create, state={"type": "PENDING"})["id"] for _ in range(2))
    ended = subprocess.Popen(["true"])
    ended.wait()
    running = subprocess.Popen(["sleep", "infinity"], env={**os.environ, "PREFECT__FLOW_RUN_ID": alive})
    for run, process in ((lost, ended), (alive, running)):
        request("PATCH", f"{server}/flow_runs/{run}", infrastructure_pid=str(process.pid))
    task = ask(server, "/task_runs/", flow_run_id=lost, task_key="inner", dynamic_key="0")["id"]
    flow = ask(server, "/flows/", name="inner")["id"]
    inner = ask(server, "/flow_runs/", flow_id=flow, parent_task_run_id=task, state={"type": "RUNNING"})["id"]

    def state(run: str) -> str:
        return str(request("GET", f"{server}/flow_runs/{run}")["state_type"])

    try:
        for start in range(1, 5):
            for run in {lost, alive} if start == 1 else {lost}:
                ask(server, f"/flow_runs/{run}/set_state", state={"type": "RUNNING"}, force=True)
            (recovery,) = recover("omnimri")
            assert (recovery.outcome, state(lost)) == (("scheduled again", "SCHEDULED") if start < 4 else ("crashed", "CRASHED"))
            assert (state(alive), state(inner)) == ("RUNNING", "CRASHED")
    finally:
        running.kill()
        running.wait()
    recover("omnimri")
    assert state(alive) == "SCHEDULED"


def states(profile: Path, home: Home, *steps: str) -> list[str]:
    planned = {step.step: step.state for step in plan(load_settings(str(profile)), home)}
    return [planned[step] for step in steps]


def test_an_update_runs_the_planned_steps(server: str, home: Home, tmp_path: Path) -> None:
    """Follow a dataset from its first ingestion through a change of one file, as the automation does."""
    from flows.deployments import curate
    from flows.parameters import Change, Profile

    profile = tiny_profile(tmp_path, patients=4)
    steps = ("read synthetic-brain-nifti", "curate", "validate")
    assert states(profile, home, *steps) == ["runs"] * 3
    curate(Profile(name=str(profile)))
    assert states(profile, home, *steps) == ["reused"] * 3
    write_patient(tmp_path / "source", 2, seed=41)
    assert states(profile, home, *steps) == ["runs", "depends", "depends"]
    before = {path: path.stat().st_mtime_ns for path in home.curated.rglob("*.b2nd")}
    curate(Profile(name=str(profile)), Change(kind="folder", name="synthetic-brain-nifti"))
    after = {path: path.stat().st_mtime_ns for path in home.curated.rglob("*.b2nd")}
    untouched = [path for path in before if after.get(path) == before[path]]
    assert len(before) == len(after) == 8 and len(untouched) == 6, "voxels and labels of one volume of four"
    assert states(profile, home, *steps) == ["reused"] * 3
    artifacts = {artifact["key"]: artifact for artifact in ask(server, "/artifacts/filter", sort="ID_DESC")}
    assert json.loads(artifacts["dataset-diff"]["data"])[0]["series"] == "+0 ~1 -0"
    assert "passed" in artifacts["validation"]["data"] and "index.html" in artifacts["validation"]["data"]


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[str]]]:
    """A web hook: its address, and the messages that it received."""
    received: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    hook = HTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=hook.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{hook.server_port}/secret-path", received
    hook.shutdown()
    thread.join()


def test_notifications_go_through_a_block_and_contain_no_details(
    server: str, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, webhook: tuple[str, list[str]]
) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    from flows.deployments import train
    from flows.parameters import Profile

    address, received = webhook
    block = CustomWebhookNotificationBlock(name="hook", url=address, json_data={"subject": "{{subject}}", "text": "{{body}}"})
    block.save("hook", overwrite=True)
    with pytest.raises(Exception, match="no curated corpus"):
        train(Profile(name="debug"))
    assert received == [], "without a block there is no notification"
    monkeypatch.setenv("OMNIMRI_NOTIFY", "custom-webhook/hook")
    with pytest.raises(Exception, match="no curated corpus"):
        train(Profile(name="debug"))
    (message,) = received
    assert json.loads(message)["subject"] == "OmniMRI: Failed" and "training" in message
    assert "corpus" not in message and str(tmp_path) not in message


def test_a_corpus_that_fails_validation_stops_the_update(server: str, home: Home, tmp_path: Path) -> None:
    from flows.deployments import curate
    from flows.parameters import Profile

    profile = tiny_profile(tmp_path, patients=4)
    source = next((tmp_path / "source").rglob("*_T1w.json"))
    for path in (tmp_path / "source").rglob("*_T1w.json"):
        path.write_text(source.read_text().replace("0.6", "0.001"))  # a repetition time of a millisecond
    with pytest.raises(GateRefused, match="repetition"):
        curate(Profile(name=str(profile)))
    assert states(profile, home, "read synthetic-brain-nifti", "curate", "validate") == ["reused", "reused", "runs"]
