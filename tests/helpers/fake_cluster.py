"""A cluster on this machine: API server, controllers, and a kubelet whose pods follow scripts unless a test says otherwise."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.launching import JobSpec, SharedVolume
from components.launching.kubernetes.api_client import Cluster, RetryPolicy
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOB_LABEL, RenderingName
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet, PodBehavior, ScriptedPod

EVENT_TIMEOUT_S = 1000.0
"""Bound on the time for which a test waits for an event; a test that passes does not depend on it."""
FAST_RETRY = RetryPolicy(initial_pause_s=0.02, max_pause_s=0.1, give_up_s=EVENT_TIMEOUT_S, watch_s=1.0)
RENDERINGS: tuple[RenderingName, ...] = ("job", "jobset", "trainjob")
RUNS_FOREVER = ScriptedPod(("started",), exit_code=None)


@dataclass
class FakeCluster:
    server: RunningServer
    controllers: Controllers
    kubelet: Kubelet
    folder: Path

    def __post_init__(self) -> None:
        self.next_behaviors: list[PodBehavior] = []
        """Behavior of the next pods; all later ones follow :attr:`default_behavior`."""
        self.default_behavior: PodBehavior = ScriptedPod(("started", "done"))
        self.kubelet.choose_behavior = lambda pod: self.next_behaviors.pop(0) if self.next_behaviors else self.default_behavior
        self.launchers: list[KubernetesLauncher] = []

    def launcher(self, rendering: RenderingName = "job", retry: RetryPolicy = FAST_RETRY) -> KubernetesLauncher:
        launcher = KubernetesLauncher(Cluster(self.server.client(), NAMESPACE, retry), rendering)
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
            **{"pending_limit_s": EVENT_TIMEOUT_S, "image_limit_s": 0.3, **changes},
        )

    def objects(self) -> list[dict[str, Any]]:
        """Return all objects that belong to OmniMRI jobs."""
        objects = list(self.server.api.store.objects.values())
        return [thing for thing in objects if JOB_LABEL in thing["metadata"].get("labels", {})]

    def is_running(self, count: int = 2) -> bool:
        """Return whether exactly this many pods are running."""
        return sum(pod["status"]["phase"] == "Running" for pod in self.server.objects("pods")) == count


@dataclass
class Waiter:
    """Thread that waits for a job, and the exceptions that it raised."""

    handle: KubernetesHandle

    def __post_init__(self) -> None:
        self.raised: list[BaseException] = []
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            self.handle.wait()
        except BaseException as error:
            self.raised.append(error)

    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> list[BaseException]:
        """Wait for the end of the thread and return what it raised."""
        self._thread.join(EVENT_TIMEOUT_S)
        assert not self._thread.is_alive(), "still waiting for the job"
        return self.raised


def wait_until(condition: Callable[[], object], timeout_s: float = EVENT_TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.005)
