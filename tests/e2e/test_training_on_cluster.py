"""A complete training stage on a test cluster: two pods that run as processes, and an API server over HTTP."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from components.catalog import load_card
from components.curation import curate
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.samples import build_sample
from components.settings import load_settings
from components.training import StageResult, train_stage
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet
from tests.helpers.corpora import tiny_corpus
from tests.helpers.mlflow_store import new_home


@dataclass
class Workspace:
    """A corpus, settings for two pods, and folders that the pods and this process share."""

    folder: Path
    corpus: Path
    profile: str = "debug"

    def train(self, name: str, launcher: KubernetesLauncher | None, *overrides: str) -> StageResult:
        environment = f"kubernetes.environment={{OMP_NUM_THREADS: '{threads_per_process()}'}}"
        settings = load_settings(
            self.profile,
            [
                "launcher=kubernetes",
                "training.processes=2",
                "kubernetes.nodes=2",
                "kubernetes.cpu='1'",
                f"kubernetes.volumes={{state: {self.folder}}}",
                environment,
                *overrides,
            ],
        )
        home = new_home(self.folder / name, self.folder / "data")
        return train_stage("vision_pretraining", self.corpus, settings, home, None, None, launcher)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Hide the compiler, as in the image, so that processes communicate through gloo."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return Workspace(tmp_path, tiny_corpus(tmp_path / "corpus").root)


def assert_same_bits(first: StageResult, second: StageResult) -> None:
    weights = [load_file(result.model_dir / "model.safetensors") for result in (first, second)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (first.first_loss, first.last_loss, first.steps) == (second.first_loss, second.last_loss, second.steps)


def test_two_pods_train_to_the_same_bits_as_two_local_processes(workspace: Workspace) -> None:
    """Stage 1, JobSet, two nodes with one process each, torchrun's rendezvous over the loopback."""
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        on_cluster = workspace.train("cluster", launcher)
        launcher.stop()
        assert launcher.rendering == "jobset" and len(kubelet.started) == 2
    assert_same_bits(workspace.train("local", None), on_cluster)
    log = (on_cluster.folder / "vision_pretraining.log").read_text()
    assert "rank 0: vision_pretraining 3/3 loss" in log and "rank 1: " in log


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stage_1_of_the_demo_has_the_same_weights_through_the_cluster(workspace: Workspace) -> None:
    """Corpus, network and steps of the demo; two pods versus two local processes."""
    workspace = replace(workspace, profile="demo", corpus=build_demo_corpus(workspace.folder))
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        on_cluster = workspace.train("cluster", launcher)
        launcher.stop()
        assert len(kubelet.started) == 2 and on_cluster.steps == load_settings("demo").training.vision_pretraining.steps
    local = workspace.train("local", None)
    assert_same_bits(local, on_cluster)
    for name, result in (("local", local), ("cluster", on_cluster)):
        digest = hashlib.sha256((result.model_dir / "model.safetensors").read_bytes()).hexdigest()
        print(f"{name}: {result.steps} steps in {result.seconds:.0f} s, {digest}")


def build_demo_corpus(folder: Path) -> Path:
    """Build the corpus that the demo profile trains on."""
    settings = load_settings("demo")
    cards = [load_card(dataset.card) for dataset in settings.datasets]
    for card in cards:
        build_sample(card, folder / "sources" / card.id)
        ingest(card, folder / "sources" / card.id, folder / "data", DEMO_KEY)
    curate(folder / "data", cards, folder / "curated", settings.curation)
    return folder / "curated"


@pytest.mark.slow
@pytest.mark.parametrize("node", [0, 1])
def test_a_pod_evicted_in_the_middle_is_replaced_and_the_weights_stay_the_same(workspace: Workspace, node: int) -> None:
    """The kubelet sends SIGTERM, all pods write a checkpoint, and the replaced pod joins (node 0: hosts) the rendezvous.

    No restart is permitted: an eviction uses none, and the other pod stays, also if it loses the host of the rendezvous.
    """
    steps = ("training.vision_pretraining.steps=60", "training.vision_pretraining.checkpoint_every=5", "kubernetes.restarts=0")
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE), "job")

        def evict() -> None:
            while not list((workspace.folder / "cluster").glob("training/*/checkpoint.json")):
                time.sleep(0.05)
            kubelet.disrupt(node, "EvictionByEvictionAPI", "drained")

        threading.Thread(target=evict, daemon=True).start()
        on_cluster = workspace.train("cluster", launcher, *steps)
        launcher.stop()
        assert len(kubelet.started) == 3 and on_cluster.resumed_at is not None
    assert_same_bits(workspace.train("local", None, *steps), on_cluster)


def threads_per_process() -> int:
    """Return the number of threads that the local launcher gives each of two processes."""
    return max((os.cpu_count() or 1) // 2, 1)
