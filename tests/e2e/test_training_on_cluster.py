"""A whole training stage through the Kubernetes path: two pods that really run, against an API server over HTTP."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.home import Home
from components.launching.cluster import Cluster
from components.launching.kubernetes import KubernetesLauncher
from components.settings import load_settings
from components.training import StageResult, train_stage
from tests.corpora import tiny_corpus
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet


def test_two_pods_train_to_the_same_bits_as_two_local_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage 1, JobSet, two nodes of one process, torchrun's rendezvous over the loopback; as in the image, there is no compiler."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    corpus = tiny_corpus(tmp_path / "corpus").root
    settings = load_settings(
        "debug",
        [
            "launcher=kubernetes", "training.processes=2", "kubernetes.nodes=2", "kubernetes.cpu='1'",
            f"kubernetes.volumes={{state: {tmp_path}}}", f"kubernetes.environment={{OMP_NUM_THREADS: '{threads()}'}}",
        ],
    )  # fmt: skip

    def trained(name: str, launcher: KubernetesLauncher | None) -> StageResult:
        return train_stage("vision_pretraining", corpus, settings, Home(tmp_path / name, tmp_path / "data"), None, None, launcher)

    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        theirs = trained("cluster", launcher)
        launcher.stop()
        assert launcher.rendering == "jobset" and len(kubelet.started) == 2
    ours = trained("local", None)
    weights = [load_file(result.model_dir / "model.safetensors") for result in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (ours.first_loss, ours.last_loss, ours.steps) == (theirs.first_loss, theirs.last_loss, theirs.steps)
    log = (theirs.folder / "vision_pretraining.log").read_text()
    assert "rank 0: vision_pretraining 3/3 loss" in log and "rank 1: " in log


def threads() -> int:
    """As the local launcher shares out this machine."""
    return max((os.cpu_count() or 1) // 2, 1)
