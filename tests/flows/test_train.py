"""Canceling a run cancels its jobs on the cluster, and no others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from components.home import Home
from components.launching import JobState
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.settings import load_settings
from components.training import stage_jobs
from flows import train
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet, ScriptedPod
from tests.helpers.corpora import tiny_corpus


def test_a_canceled_run_cancels_its_own_jobs_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path))
    corpus = tiny_corpus(tmp_path / "curated")
    volumes = f"kubernetes.volumes={{state: {tmp_path}}}"
    ours, theirs = (load_settings("debug", ["launcher=kubernetes", volumes, f"seed={seed}"]) for seed in (1, 2))
    with RunningServer() as server, Controllers(server), Kubelet(server, lambda pod: ScriptedPod(exit_code=None)):
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        monkeypatch.setattr(train, "open_launcher", lambda settings: launcher)
        keys = []
        for settings in (ours, theirs):
            job = stage_jobs(corpus.digest, settings, Home.open())[0]
            keys.append(launcher.submit(job).key)
        train.cancel_jobs(None, SimpleNamespace(parameters={"settings": ours.model_dump(mode="json")}), None)  # type: ignore[arg-type]
        assert [status.key for status in launcher.jobs()] == keys[1:]
        assert launcher.jobs()[0].state in (JobState.starting, JobState.running)
        launcher.stop()


def test_a_local_run_contacts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "open_launcher", lambda settings: pytest.fail("there is nothing to cancel"))
    train.cancel_jobs(None, SimpleNamespace(parameters={"settings": load_settings("debug").model_dump(mode="json")}), None)  # type: ignore[arg-type]
