"""What the tests of faults share: how they wait, and for what."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import kmock

from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.manifests import RenderingName
from tests.components.launching.conftest import World
from tests.doubles.kubelet import Script

RENDERINGS: tuple[RenderingName, ...] = ("job", "jobset", "trainjob")
RUNS_ON = Script(("begun",), exit_code=None)


def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def running(world: World, count: int = 2) -> bool:
    return sum(pod["status"]["phase"] == "Running" for pod in world.server.objects("pods")) == count


def lists(request: kmock.Request) -> bool:
    return request.action is kmock.action.LIST


def waiting(handle: KubernetesHandle) -> tuple[threading.Thread, list[BaseException]]:
    """Wait in another thread; what it raised."""
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            handle.wait()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, raised


def ours(world: World) -> list[dict]:  # type: ignore[type-arg]
    return [thing for thing in world.server.api.store.objects.values() if "omnimri.dev/job" in thing["metadata"].get("labels", {})]
