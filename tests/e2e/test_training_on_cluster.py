"""A whole training stage through the Kubernetes path: two pods that really run, against an API server over HTTP."""

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
from components.home import Home
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


@dataclass
class Place:
    """A corpus, settings for two pods, and folders that pods and this process see alike."""

    folder: Path
    corpus: Path
    profile: str = "debug"

    def train(self, name: str, launcher: KubernetesLauncher | None, *overrides: str) -> StageResult:
        environment = f"kubernetes.environment={{OMP_NUM_THREADS: '{threads()}'}}"
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
        home = Home(self.folder / name, self.folder / "data")
        return train_stage("vision_pretraining", self.corpus, settings, home, None, None, launcher)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """As in the image, there is no compiler, so processes talk through gloo."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return Place(tmp_path, tiny_corpus(tmp_path / "corpus").root)


def assert_same_bits(ours: StageResult, theirs: StageResult) -> None:
    weights = [load_file(result.model_dir / "model.safetensors") for result in (ours, theirs)]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (ours.first_loss, ours.last_loss, ours.steps) == (theirs.first_loss, theirs.last_loss, theirs.steps)


def test_two_pods_train_to_the_same_bits_as_two_local_processes(place: Place) -> None:
    """Stage 1, JobSet, two nodes of one process, torchrun's rendezvous over the loopback."""
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        theirs = place.train("cluster", launcher)
        launcher.stop()
        assert launcher.rendering == "jobset" and len(kubelet.started) == 2
    assert_same_bits(place.train("local", None), theirs)
    log = (theirs.folder / "vision_pretraining.log").read_text()
    assert "rank 0: vision_pretraining 3/3 loss" in log and "rank 1: " in log


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stage_1_of_the_demo_has_the_same_weights_through_the_cluster(place: Place) -> None:
    """The demo's own corpus, network and steps, two pods against two local processes."""
    place = replace(place, profile="demo", corpus=demo_corpus(place.folder))
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE))
        theirs = place.train("cluster", launcher)
        launcher.stop()
        assert len(kubelet.started) == 2 and theirs.steps == load_settings("demo").training.vision_pretraining.steps
    ours = place.train("local", None)
    assert_same_bits(ours, theirs)
    for name, result in (("local", ours), ("cluster", theirs)):
        digest = hashlib.sha256((result.model_dir / "model.safetensors").read_bytes()).hexdigest()
        print(f"{name}: {result.steps} steps in {result.seconds:.0f} s, {digest}")


def demo_corpus(folder: Path) -> Path:
    """The corpus that the demo profile is trained on."""
    settings = load_settings("demo")
    cards = [load_card(dataset.card) for dataset in settings.datasets]
    for card in cards:
        build_sample(card.id, folder / "sources" / card.id)
        ingest(card, folder / "sources" / card.id, folder / "data", DEMO_KEY)
    curate(folder / "data", cards, folder / "curated", settings.curation)
    return folder / "curated"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("node", [0, 1])
def test_a_pod_evicted_in_the_middle_comes_back_and_the_bits_stay_the_same(place: Place, node: int) -> None:
    """The kubelet sends SIGTERM, all write a checkpoint; the new pod meets the others (node 0: is met by them) and they go on."""
    steps = ("training.vision_pretraining.steps=60", "training.vision_pretraining.checkpoint_every=5")
    with RunningServer() as server, Controllers(server), Kubelet(server) as kubelet:
        launcher = KubernetesLauncher(Cluster(server.client(), NAMESPACE), "job")

        def evict() -> None:
            while not list((place.folder / "cluster").glob("training/*/checkpoint.json")):
                time.sleep(0.05)
            kubelet.disrupt(node, "EvictionByEvictionAPI", "drained")

        threading.Thread(target=evict, daemon=True).start()
        theirs = place.train("cluster", launcher, *steps)
        launcher.stop()
        assert len(kubelet.started) >= 3 and theirs.resumed_at is not None
    assert_same_bits(place.train("local", None, *steps), theirs)


def threads() -> int:
    """As the local launcher shares out this machine."""
    return max((os.cpu_count() or 1) // 2, 1)
