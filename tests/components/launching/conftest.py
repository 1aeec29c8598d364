"""A cluster on this machine: API server, controllers, and a kubelet whose pods are scripts unless a test says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.launching import JobSpec, SharedVolume
from components.launching.kubernetes.api_client import Cluster, Patience
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import RenderingName
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Fate, Kubelet, Script

SCALE = 300.0
"""Time in these tests runs this many times as fast as in Patience's defaults."""
QUICK = Patience(first=0.02, longest=30 / SCALE, limit=900 / SCALE, connect=1.0, read=0.5, watch=300 / SCALE)


@dataclass
class World:
    server: RunningServer
    controllers: Controllers
    kubelet: Kubelet
    folder: Path

    def __post_init__(self) -> None:
        self.fates: list[Fate] = []
        """What becomes of the next pods; then of all others, :attr:`otherwise`."""
        self.otherwise: Fate = Script(("begun", "done"))
        self.kubelet.fate = lambda pod: self.fates.pop(0) if self.fates else self.otherwise
        self.launchers: list[KubernetesLauncher] = []

    def launcher(self, rendering: RenderingName = "job", patience: Patience = QUICK) -> KubernetesLauncher:
        launcher = KubernetesLauncher(Cluster(self.server.client(), NAMESPACE, patience), rendering)
        self.launchers.append(launcher)
        return launcher

    def job(self, name: str = "a_stage", nodes: int = 2, **changes: object) -> JobSpec:
        return JobSpec(
            name,
            "some.module",
            ("argument",),
            processes=nodes,
            nodes=nodes,
            folder=self.folder / name,
            image="image",
            volumes=(SharedVolume("state", self.folder),),
            **{"pending_limit_s": 0.3, "image_limit_s": 0.3, **changes},
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with RunningServer() as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        world = World(server, controllers, kubelet, tmp_path)
        yield world
        for launcher in world.launchers:
            launcher.stop()
