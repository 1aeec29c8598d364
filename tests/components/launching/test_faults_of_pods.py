"""The fault table of docs/kubernetes.md, what befalls pods: what happens, and what the user is told."""

from __future__ import annotations

import time

import pytest

from components.errors import JobFailed
from components.launching.kubernetes.manifests import RenderingName
from tests.components.launching.conftest import World
from tests.doubles.kubelet import Script, Stuck
from tests.helpers.cluster_faults import RENDERINGS, RUNS_ON, running, until, waiting


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize(
    ("reason", "said"),
    [("EvictionByEvictionAPI", "evicted"), ("DeletionByTaintManager", "node lost"), ("PreemptionByScheduler", "preempted")],
)
def test_a_pod_that_lost_its_machine_is_replaced_and_the_job_ends_well(
    world: World, rendering: RenderingName, reason: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The controller replaces the pod under the same index; torchrun lets it in, training goes on from its last checkpoint."""
    world.otherwise = RUNS_ON
    handle = world.launcher(rendering).submit(world.job())
    thread, raised = waiting(handle)
    until(lambda: handle._told.endswith("running"))
    world.otherwise = Script(("went on",))
    world.kubelet.disrupt(1, reason, "the node goes down")
    until(lambda: len(world.kubelet.started) == 3)
    world.server.do(world.kubelet._ended(world.kubelet._pod(0), 0))
    thread.join(10)
    assert not thread.is_alive() and raised == []
    assert "rank 1: went on" in handle.logs()
    assert f"{said} (the node goes down); training goes on" in capsys.readouterr().err


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_job_that_evictions_have_ended_is_submitted_again(
    world: World, rendering: RenderingName, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a disruption policy of the cluster (or beyond its limits) the launcher itself goes on."""
    world.otherwise = RUNS_ON
    handle = world.launcher(rendering).submit(world.job(restarts=0))
    thread, raised = waiting(handle)
    until(lambda: running(world))
    first = handle.main["metadata"]["uid"]
    world.otherwise = Script(("went on",))
    pod = world.kubelet._pod(1)
    world.controllers._policy = lambda job, pod: "Count"  # type: ignore[method-assign]
    pod["status"].update(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    world.server.put("pods", pod)
    thread.join(20)
    assert not thread.is_alive() and raised == [] and handle.main["metadata"]["uid"] != first
    told = capsys.readouterr().err
    assert "evicted (The node was low on resource: memory.); going on from its last checkpoint (1 of 3)" in told
    assert "rank 0: went on" in handle.logs()


def test_evicted_more_often_than_allowed_it_stops_and_says_so(world: World) -> None:
    world.controllers._policy = lambda job, pod: "Count"  # type: ignore[method-assign]
    world.otherwise = RUNS_ON
    handle = world.launcher().submit(world.job(restarts=0, resumptions=0, nodes=1))
    thread, raised = waiting(handle)
    until(lambda: running(world, 1))
    pod = world.kubelet._pod(0)
    pod["status"].update(phase="Failed", reason="Evicted", message="disk pressure")
    world.server.put("pods", pod)
    thread.join(10)
    (error,) = raised
    assert "evicted (disk pressure), 1 times" in str(error) and "run again" in str(error)


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_out_of_memory_stops_at_once_and_names_the_setting(world: World, rendering: RenderingName) -> None:
    world.otherwise = RUNS_ON
    handle = world.launcher(rendering).submit(world.job())
    thread, raised = waiting(handle)
    until(lambda: running(world))
    world.kubelet.kill(1, "OOMKilled")
    thread.join(10)
    (error,) = raised
    assert isinstance(error, JobFailed)
    assert "memory limit" in str(error) and "kubernetes.memory" in error.remedy and "micro_batch" in error.remedy
    assert len(world.kubelet.started) == 2  # nothing was tried again


def test_an_image_that_cannot_be_pulled_stops_after_its_time_with_the_remedy(world: World) -> None:
    world.otherwise = Stuck("ImagePullBackOff", "Back-off pulling image: unauthorized")
    handle = world.launcher().submit(world.job(image_limit_s=0.2))
    started = time.monotonic()
    with pytest.raises(JobFailed, match=r"ImagePullBackOff.*unauthorized.*kubernetes\.image"):
        handle.wait()
    assert 0.2 <= time.monotonic() - started < 5
    assert world.server.objects("jobs") == [] and world.server.objects("services") == []  # it waits for nothing any more


def test_an_image_name_that_is_none_stops_at_once(world: World) -> None:
    world.otherwise = Stuck("InvalidImageName", "couldn't parse image reference")
    with pytest.raises(JobFailed, match="InvalidImageName"):
        world.launcher().submit(world.job(image_limit_s=60.0)).wait()


def test_a_missing_secret_or_claim_is_named(world: World) -> None:
    world.otherwise = Stuck("CreateContainerConfigError", 'secret "mlflow" not found')
    with pytest.raises(JobFailed, match=r'secret "mlflow" not found.*kubernetes\.secrets'):
        world.launcher().submit(world.job()).wait()


def test_no_machine_with_gpus_stops_after_its_time_and_quotes_the_scheduler(world: World) -> None:
    world.otherwise = Stuck("", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", unschedulable=True)
    with pytest.raises(JobFailed, match=r"Insufficient nvidia\.com/gpu.*gpus_per_node"):
        world.launcher().submit(world.job(pending_limit_s=0.2)).wait()
    assert world.server.objects("pods") == []


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_program_that_fails_shows_the_end_of_its_log(world: World, rendering: RenderingName) -> None:
    world.otherwise = Script((*(f"line {n}" for n in range(30)), "ValueError: the loss"), exit_code=1)
    handle = world.launcher(rendering).submit(world.job(restarts=0, nodes=1))
    with pytest.raises(JobFailed, match=r"ended with status 1(.|\n)*ValueError: the loss(.|\n)*a_stage\.log") as caught:
        handle.wait()
    assert "line 29" in str(caught.value) and "line 3\n" not in str(caught.value)


def test_a_configuration_error_is_not_tried_again(world: World) -> None:
    world.otherwise = Script(("job.json is not here: mount the volume",), exit_code=2)
    with pytest.raises(JobFailed, match=r"job\.json is not here"):
        world.launcher().submit(world.job(nodes=1)).wait()
    assert len(world.kubelet.started) == 1


def test_pods_that_nobody_makes_are_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.launching.kubernetes.job_handle.NO_PODS_S", 0.05)
    monkeypatch.setattr(world.controllers, "_pod", lambda job, index: _nothing())
    world.server.put(
        "events",
        {
            "kind": "Event",
            "type": "Warning",
            "metadata": {"name": "e"},
            "reason": "FailedCreate",
            "involvedObject": {"name": world.job().key},
            "message": 'serviceaccount "training" not found',
        },
    )
    with pytest.raises(JobFailed, match='serviceaccount "training" not found'):
        world.launcher().submit(world.job()).wait()


async def _nothing() -> None:
    return None
