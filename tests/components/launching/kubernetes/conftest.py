from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.launching.kubernetes import admission, job_handle, launcher
from tests.doubles.apiserver import RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet
from tests.helpers.fake_cluster import FakeCluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with RunningServer() as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        yield cluster
        for launcher in cluster.launchers:
            launcher.stop()


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the times after which a controller or a pod counts as missing."""
    monkeypatch.setattr(job_handle, "MISSING_PODS_S", 0.05)
    monkeypatch.setattr(job_handle, "LOOK_MARGIN_S", 0.02)
    for module in (admission, job_handle):
        monkeypatch.setattr(module, "SILENT_CONTROLLER_S", 0.1)
    monkeypatch.setattr(launcher, "ORPHAN_LIMIT_S", 0.1)
