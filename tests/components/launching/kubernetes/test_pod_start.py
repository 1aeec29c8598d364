"""Pods that do not start although their status names no fault: the job tells why, and does not keep machines without limit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.errors import JobFailed
from components.launching import JobState, Placement
from components.launching.kubernetes import job_handle
from components.launching.kubernetes.blocker_timer import BlockerTimer
from components.launching.kubernetes.failures import Failure, FailureKind
from components.launching.kubernetes.manifests import RenderingName
from components.launching.kubernetes.observation import Observation
from tests.doubles.kubelet import BlockedPod
from tests.helpers.fake_cluster import RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until

pytestmark = pytest.mark.usefixtures("short_limits")
MOUNT = 'MountVolume.SetUp failed for volume "pvc-1" : rpc error: code = Internal desc = mount.nfs: Connection timed out'


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_volume_that_cannot_be_mounted_is_told_and_ends_the_job_after_the_pending_limit(
    cluster: FakeCluster, rendering: RenderingName, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.default_behavior = BlockedPod(message=MOUNT, event="FailedMount")
    with pytest.raises(JobFailed, match=r"FailedMount: MountVolume.SetUp failed .* timed out.*kubernetes\.volumes"):
        cluster.launcher(rendering).submit(cluster.job(pending_limit_s=0.3)).wait()
    assert "a_stage: starting: a-stage-" in capsys.readouterr().err
    assert cluster.server.objects("pods") == []


def test_a_volume_that_another_node_uses_keeps_only_one_pod_waiting_and_the_job_is_not_called_running(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    message = 'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) other-0'
    cluster.next_behaviors = [RUNS_FOREVER, BlockedPod(message=message, event="FailedAttachVolume")]
    handle = cluster.launcher().submit(cluster.job(pending_limit_s=1.0))
    with pytest.raises(JobFailed, match=r"Multi-Attach error .*serves one node"):
        handle.wait()
    told = capsys.readouterr().err
    assert "starting: 1 of 2 nodes have started, the next pulls its image and mounts its volumes" in told
    assert "a_stage: running" not in told and cluster.server.objects("pods") == []


@pytest.mark.parametrize(
    ("event", "message", "remedy"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "login" : secret "mlflow" not found', r"kubernetes\.secrets"),
        ("FailedMount", 'MountVolume.SetUp failed for volume "x" : configmap "x" not found', "create it"),
        (
            "FailedResourceClaimCreation",
            'PodResourceClaim nic: resource claim template "t": resourceclaimtemplate.resource.k8s.io "t" not found',
            r"kubernetes\.resource_claims",
        ),
    ],
)
def test_a_missing_object_that_only_an_event_names_stops_after_seconds(
    cluster: FakeCluster, event: str, message: str, remedy: str
) -> None:
    cluster.default_behavior = BlockedPod(message=message, event=event)
    with pytest.raises(JobFailed, match=f"{event}: .*not found.*{remedy}"):
        cluster.launcher().submit(cluster.job(image_limit_s=1e6)).wait()


@pytest.mark.parametrize(
    ("event", "remedy"),
    [
        ("FailedCreatePodSandBox", r"network plugin .*kubernetes\.excluded_machines machine-0"),
        ("FailedPrepareDynamicResources", r"driver of kubernetes\.resource_claims"),
        ("FailedToRetrieveImagePullSecret", r"kubernetes\.pull_secrets"),
        ("SomethingNew", "kubectl describe pod a-stage"),
    ],
)
def test_other_warnings_of_a_node_are_told_with_a_remedy(cluster: FakeCluster, event: str, remedy: str) -> None:
    cluster.default_behavior = BlockedPod(message="the plugin returned an error", event=event)
    with pytest.raises(JobFailed, match=f"{event}: the plugin returned an error.*{remedy}"):
        cluster.launcher().submit(cluster.job(nodes=1, pending_limit_s=0.3)).wait()


def test_a_pod_that_no_scheduler_looks_at_is_told_and_ends_the_job_after_the_pending_limit(cluster: FakeCluster) -> None:
    """Its status has no condition: the scheduler that ``kubernetes.scheduler`` names does not run."""
    job = cluster.job(pending_limit_s=0.3, placement=Placement(scheduler="absent"))
    with pytest.raises(JobFailed, match=r"no scheduler has looked for a machine.*kubernetes\.scheduler"):
        cluster.launcher().submit(job).wait()


def test_a_pod_about_which_nothing_is_told_ends_the_job_after_the_pending_limit(cluster: FakeCluster) -> None:
    cluster.default_behavior = BlockedPod()
    with pytest.raises(JobFailed, match=r"has not started on node machine-\d \(no event tells why\).*kubectl describe pod"):
        cluster.launcher().submit(cluster.job(pending_limit_s=0.3)).wait()


def test_a_warning_without_consequences_is_not_called_the_cause(cluster: FakeCluster) -> None:
    cluster.default_behavior = BlockedPod(message="Nameserver limits were exceeded", event="DNSConfigForming")
    with pytest.raises(JobFailed, match="no event tells why"):
        cluster.launcher().submit(cluster.job(nodes=1, pending_limit_s=0.3)).wait()


def test_a_fault_that_is_over_is_not_told(cluster: FakeCluster) -> None:
    """After a failed mount the image is pulled, which takes minutes: the newest event counts."""
    cluster.default_behavior = BlockedPod(message='Pulling image "big"', event="Pulling", event_type="Normal")
    handle = cluster.launcher().submit(cluster.job(nodes=1))
    (pod,) = cluster.server.objects("pods")
    cluster.server.run(cluster.server.api.record_event({"kind": "Pod", **pod}, "FailedMount", "late"))
    (event,) = [thing for thing in cluster.server.objects("events") if thing["reason"] == "FailedMount"]
    cluster.server.put("events", {**event, "lastTimestamp": "2026-01-01T00:00:00Z"})
    waiter = Waiter(handle)
    wait_until(lambda: '(Pulling image "big")' in handle._last_reported)
    assert handle.status().state is JobState.starting
    handle.cancel()
    waiter.join()


@pytest.mark.parametrize("nodes", [2, job_handle.MAX_LISTS + 1])
def test_the_events_are_listed_once_in_thirty_seconds_and_those_of_few_pods_one_by_one(
    cluster: FakeCluster, nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of waiting jobs, whose pods change often, must not list the events of a namespace again and again."""
    cluster.default_behavior = BlockedPod(message=MOUNT, event="FailedMount")
    handle = cluster.launcher().submit(cluster.job(nodes=nodes))
    wait_until(lambda: handle._observe()[0].unstarted == nodes)
    observation, pods = handle._observe()
    clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)
    monkeypatch.setattr(job_handle, "time", clock)

    def count_lists() -> int:
        return sum("/events" in request._raw_request.path for request in cluster.server.requests())

    for now_s, looks in ((0.0, 1), (0.01, 1), (1.0, 2)):
        clock.now_s = now_s
        assert "FailedMount" in handle._add_hidden_blocker(observation, pods, waited_s=1.0).detail
        assert count_lists() == looks * (nodes if nodes <= job_handle.MAX_LISTS else 1)
    handle.cancel()


def test_pods_that_are_not_created_without_any_event_end_the_job_after_the_pending_limit(cluster: FakeCluster) -> None:
    cluster.next_behaviors = [RUNS_FOREVER]
    cluster.controllers.create_limit = 1
    with pytest.raises(JobFailed, match="1 of 2 pods exist, and no event tells why"):
        cluster.launcher().submit(cluster.job(pending_limit_s=0.3)).wait()


def test_faults_that_take_turns_share_one_pending_limit() -> None:
    """A job that finds no machine for 20 min, and then mounts its volumes for 20 min, has waited for 40 min."""
    timer, full, stuck = BlockerTimer(), Failure(FailureKind.unschedulable, "", ""), Failure(FailureKind.stalled, "", "")
    for minute, blocker in ((0, full), (20, full), (21, None), (22, stuck), (31, stuck)):
        observation = Observation(JobState.pending, blocker=blocker, unstarted=1)
        timer.waited_s(observation, minute * 60.0)
        timer.update(blocker, minute * 60.0)
    assert timer.remaining_s(stuck, 1800.0, 31 * 60.0) == -60.0
    timer.waited_s(Observation(JobState.running), 32 * 60.0)
    timer.waited_s(Observation(JobState.pending, unstarted=1), 33 * 60.0)
    assert timer.remaining_s(stuck, 1800.0, 33 * 60.0) == 1800.0
