"""``omnimri serve`` with real servers, worker and watcher: updates, kills, cancellation, approval, shutdown."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.provenance import REPOSITORY
from tests.helpers.datasets import write_patient
from tests.helpers.served import Served, environment, served, tiny_profile, wait

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("site"), "--train-on-update") as found:
        yield found


@pytest.fixture(scope="module")
def corpus(site: Served) -> None:
    """A curated corpus, which training needs."""
    assert site.ended(site.run("dataset update", "curate", goal="corpus"), 300) == "COMPLETED"


@pytest.fixture(scope="module")
def first(site: Served) -> dict[str, Any]:
    """A pipeline run that was started manually, and its registered version."""
    run = site.run("scheduled pipeline", "pipeline")
    assert site.ended(run, 600) == "COMPLETED"
    (version,) = versions(site)
    return version


def versions(site: Served) -> list[dict[str, Any]]:
    """Return the registered versions, newest first."""
    import mlflow

    client = mlflow.MlflowClient(site.addresses["mlflow"])
    registered = sorted(client.search_model_versions("name='omnimri'"), key=lambda version: -int(version.version))
    return [{"version": int(version.version), "run": version.run_id, **version.tags} for version in registered]


def stage_runs(site: Served) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(site.addresses["mlflow"])
    experiment = client.get_experiment_by_name("omnimri")
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], "tags.`omnimri.stage` != ''"))


def assert_nothing_is_duplicated(site: Served) -> None:
    """Check for one MLflow run of each trained stage, every step once in its curve, and no two equal versions."""
    assert set(Counter(run.data.tags["omnimri.digest"] for run in stage_runs(site)).values()) == {1}
    for curve in (site.home.root / "training").glob("*/curve.jsonl"):
        steps = [json.loads(line)["step"] for line in curve.read_text().splitlines()]
        assert steps == list(range(len(steps)))
    weights = [(version["weights_digest"], version["data_digest"]) for version in versions(site)]
    assert len(weights) == len(set(weights))


def test_a_changed_file_becomes_a_candidate_automatically(site: Served, first: dict[str, Any]) -> None:
    changed = time.time()
    write_patient(site.home.data.parent / "source", 2, seed=99)
    (run,) = wait(lambda: site.runs("dataset update"), 120, "run of the automation")
    assert site.ended(run["id"], 600) == "COMPLETED"
    run = site.ask("GET", f"/flow_runs/{run['id']}")
    assert run["parameters"]["change"] == {"kind": "folder", "name": "synthetic-brain-nifti", "revision": None}
    candidate = time.time()
    newest, previous = versions(site)
    assert previous["version"] == first["version"] and newest["data_digest"] != first["data_digest"]
    logs = site.ask("POST", "/logs/filter", logs={"level": {"ge_": 20}}, limit=200, sort="TIMESTAMP_DESC")
    assert any(line["message"].startswith("8 volumes (1 new, 7 reused, 1 removed)") for line in logs)
    created, started = (time.mktime(time.strptime(run[name][:19], "%Y-%m-%dT%H:%M:%S")) for name in ("created", "start_time"))
    zone = time.mktime(time.gmtime(changed)) - changed
    print(
        f"\nfrom change: run created {created - zone - changed:.0f} s, started {started - zone - changed:.0f} s, "
        f"candidate {candidate - changed:.0f} s"
    )


def test_artifacts_and_runs_link_to_each_other(site: Served, first: dict[str, Any]) -> None:
    import mlflow

    artifacts = {artifact["key"]: artifact for artifact in site.ask("POST", "/artifacts/filter", limit=200, sort="ID_DESC")}
    stages = {f"loss-{name}" for name in ("vision-pretraining", "alignment", "multimodal-pretraining", "instruction-tuning")}
    assert {"dataset-diff", "validation", "evaluation", "mlflow-run", *stages} <= set(artifacts)
    assert json.loads(artifacts["dataset-diff"]["data"])[0]["series"] == "+0 ~1 -0"
    assert site.addresses["mlflow"] in artifacts["mlflow-run"]["data"] and "Data Docs" in artifacts["validation"]["data"]
    tags = mlflow.MlflowClient(site.addresses["mlflow"]).get_run(first["run"]).data.tags
    assert tags["prefect.flow_run"].startswith(f"{site.addresses['prefect']}/runs/flow-run/")


@pytest.mark.parametrize(
    ("victim", "words"),
    [
        ("worker", "worker start"),
        ("worker and run", "worker start"),
        ("server", "prefect server start"),
        ("MLflow", "mlflow server"),
    ],
)
def test_kill_9_while_it_trains(site: Served, corpus: None, victim: str, words: str) -> None:
    """Every run completes as if nothing had happened, and nothing is duplicated."""
    profile = {"name": str(site.profile), "overrides": [f"seed={sum(victim.encode())}"]}
    trained = len(stage_runs(site))
    run = site.run("training", "train", profile=profile, until="alignment")
    site.trainer()
    process = site.child(words)
    assert process is not None
    also_killed = [] if victim == "worker" else [site.flow_process(run)] if "run" in victim else process.children(recursive=True)
    for victim_process in [process, *also_killed]:
        victim_process.kill()
    killed = time.monotonic()
    assert site.ended(run, 600) == "COMPLETED"
    print(f"\n{victim}: the run ended {time.monotonic() - killed:.0f} s after the kill")
    assert_nothing_is_duplicated(site)
    assert len(stage_runs(site)) == trained + 2


def test_canceling_a_run_ends_its_processes(site: Served, corpus: None) -> None:
    run = site.run("training", "train", profile={"name": str(site.profile), "overrides": ["seed=21"]})
    trainer, process = site.trainer(), site.flow_process(run)
    site.ask("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert site.ended(run, 120) == "CANCELLED"
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in (trainer, process))


def test_a_promotion_waits_for_approval_without_a_process(site: Served, first: dict[str, Any]) -> None:
    import mlflow

    from components.registry import history

    request = {"version": "candidate", "to": "production", "reason": "a test: so small a model has not every task"}
    run = site.run("promotion", "promote", promotion=request)
    wait(lambda: site.state(run) == "PAUSED", 120, "suspension")
    artifacts = site.ask("POST", "/artifacts/filter", sort="ID_DESC")
    promotion = next(artifact for artifact in artifacts if artifact["key"] == "promotion")
    version = promotion["data"].split("version ")[1].split()[0]
    answer = {"version": version, "approve": True, "by": "Dr A", "comment": "seen"}
    site.ask("POST", f"/flow_runs/{run}/resume", run_input=answer)
    assert site.ended(run, 120) == "COMPLETED"
    promoted = mlflow.MlflowClient(site.addresses["mlflow"]).get_model_version_by_alias("omnimri", "production")
    entries, against = history(site.addresses["mlflow"], "omnimri")
    assert promoted.version == version and not against
    assert entries[-1].act.action == "force" and entries[-1].act.reason.endswith("approved by Dr A; seen")


def test_sigterm_ends_everything(site: Served) -> None:
    children = psutil.Process(site.process.pid).children(recursive=True)
    assert len(children) >= 4
    site.process.send_signal(signal.SIGTERM)
    assert site.process.wait(120) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def run_concurrently(root: Path, *overrides: tuple[str, ...]) -> list[dict[str, Any]]:
    """Start the pipeline several times at once, each with its own overrides, and return the reports.

    The data have no k-space, so that the versions stay candidates and the command exits with status 1.
    """
    command = [sys.executable, "-m", "flows.cli", "run", "--profile", str(tiny_profile(root, patients=8)), "--json"]
    started = [
        subprocess.Popen(
            [*command, *settings], env=environment(root), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for settings in overrides
    ]
    reports = []
    for process in started:
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 1 and "reconstruction was not measured" in errors, errors[-3000:]
        assert "Traceback" not in errors
        reports.append(json.loads(output))
    return reports


def test_two_pipelines_at_once_share_their_work(tmp_path: Path) -> None:
    """Two users run the same command: each stage is trained once, and both get the same model."""
    first, second = run_concurrently(tmp_path, (), ())
    for name in ("data_digest", "corpus_digest", "rows", "model", "run_id"):
        assert first[name] == second[name]
    assert len(list((tmp_path / "home" / "training").glob("*/done.json"))) == 4


def test_two_different_pipelines_keep_their_lineage(tmp_path: Path) -> None:
    """The second run curates differently; it waits until the first has trained on its corpus."""
    reports = run_concurrently(tmp_path, ("--set", "curation.split_seed=0"), ("--set", "curation.split_seed=1"))
    assert reports[0]["corpus_digest"] != reports[1]["corpus_digest"]
    for report in reports:
        tags = report["model"]["tags"]
        assert tags["corpus_digest"] == report["corpus_digest"]
        job = json.loads((tmp_path / "home" / "training" / tags["stage_digest.alignment"][:16] / "job.json").read_text())
        assert job["stage"] == "alignment"
    assert len(list((tmp_path / "home" / "training").glob("*/done.json"))) == 8
