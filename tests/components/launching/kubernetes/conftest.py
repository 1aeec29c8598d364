from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
