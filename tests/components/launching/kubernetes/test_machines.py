"""Machines are drained, lose power, restart, fail or are full: the launcher reacts, and tells the user."""

from __future__ import annotations

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching import JobState
from components.launching.kubernetes import job_handle, launcher, pod_failures
from components.launching.kubernetes.manifests import RenderingName
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.kubelet import BlockedPod, RefusedPod, ScriptedPod
from tests.helpers.fake_cluster import RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until
from tests.helpers.manifest_checks import kustomize

TAINT = "kubectl taint nodes machine-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


pytestmark = pytest.mark.usefixtures("short_limits")


def drain(cluster: FakeCluster, machine: str) -> None:
    """Evict all pods of a machine through the Eviction API, as ``kubectl drain`` does."""
    core = client.CoreV1Api(cluster.server.client())
    for pod in cluster.server.objects("pods"):
        if pod["spec"].get("nodeName") == machine:
            name = pod["metadata"]["name"]
            core.create_namespaced_pod_eviction(name, NAMESPACE, client.V1Eviction(metadata=client.V1ObjectMeta(name=name)))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_machine_with_a_training_pod_can_be_drained_under_the_shipped_disruption_budgets(
    cluster: FakeCluster, rendering: RenderingName
) -> None:
    shipped = [thing for overlay in ("kind", "onprem-gpu", "cloud") for thing in kustomize(f"k8s/overlays/{overlay}")]
    for number, budget in enumerate(thing for thing in shipped if thing["kind"] == "PodDisruptionBudget"):
        cluster.server.put("poddisruptionbudgets", {**budget, "metadata": {"name": f"{budget['metadata']['name']}-{number}"}})
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.default_behavior = ScriptedPod(("resumed",))
    drain(cluster, "machine-1")
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == []


def evict_service(spec: dict[str, object], phase: str, replicas: int) -> int:
    """Return the status of the eviction of a pod of a service with this budget, on a server of its own."""
    with RunningServer() as server:
        labels = {"app.kubernetes.io/name": "vllm"}
        for number in range(replicas):
            owners = [{"kind": "ReplicaSet", "name": "vllm", "uid": "u", "controller": True}]
            pod = {"metadata": {"name": f"vllm-{number}", "labels": labels, "ownerReferences": owners}}
            server.put("pods", {"kind": "Pod", **pod, "spec": {}, "status": {"phase": phase if number == 0 else "Running"}})
        server.put("poddisruptionbudgets", {"kind": "PodDisruptionBudget", "metadata": {"name": "vllm"}, "spec": spec})
        core = client.CoreV1Api(server.client())
        body = client.V1Eviction(metadata=client.V1ObjectMeta(name="vllm-0"))
        try:
            core.create_namespaced_pod_eviction("vllm-0", NAMESPACE, body)
        except ApiException as error:
            return int(error.status)
        return 201


@pytest.mark.parametrize("phase", ["Running", "Pending"])
def test_the_machine_of_a_service_can_be_drained_under_its_shipped_budget(phase: str) -> None:
    """Pending: a service that is not healthy, because its machine or image is not, must not hold the machine either."""
    budgets = {
        str(thing["spec"]): thing["spec"]
        for overlay in ("kind", "onprem-gpu", "cloud")
        for thing in kustomize(f"k8s/overlays/{overlay}")
        if thing["kind"] == "PodDisruptionBudget"
    }
    for spec in budgets.values():
        everything = {**spec, "selector": {"matchLabels": {"app.kubernetes.io/name": "vllm"}}}
        assert evict_service(everything, phase, replicas=1) == 201, spec
    blocking = {"minAvailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": "vllm"}}}
    assert evict_service(blocking, phase, replicas=1) == 429  # what was shipped before


def test_a_disruption_budget_with_max_unavailable_would_block_the_drain_of_every_job(cluster: FakeCluster) -> None:
    """A Job has no scale: such a budget allows no disruption (condition SyncFailed)."""
    budget = {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/component": "training"}}}
    cluster.server.put("poddisruptionbudgets", {"kind": "PodDisruptionBudget", "metadata": {"name": "training"}, "spec": budget})
    cluster.default_behavior = RUNS_FOREVER
    cluster.launcher().submit(cluster.job())
    wait_until(cluster.is_running)
    with pytest.raises(ApiException) as refused:
        drain(cluster, "machine-1")
    assert refused.value.status == 429


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_machine_without_power_is_named_while_waiting_in_the_list_and_while_cancelling(
    cluster: FakeCluster, rendering: RenderingName, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The grace period is over at once here; test_failures.py holds the 30 s after it."""
    for module in (pod_failures, job_handle, launcher):
        monkeypatch.setattr(module, "UNREACHABLE_MARGIN_S", -1000.0 if module is pod_failures else 0.05)
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    pod = cluster.kubelet.cut_power(1)["metadata"]["name"]
    wait_until(lambda: f"pending: {pod}: node machine-1 does not confirm" in handle._last_reported)
    assert TAINT in handle._last_reported
    told = capsys.readouterr().err
    assert "resumes" not in told and "it is replaced only when its machine confirms its end" in told
    (row,) = handle.launcher.jobs()  # type: ignore[attr-defined]
    assert row.state is JobState.pending and pod in row.detail and TAINT in row.detail
    cancellation = Waiter(_Cancel(handle))  # type: ignore[arg-type]
    # Without a grace period the pod of the healthy machine is named too, until its kubelet has ended it.
    wait_until(lambda: handle.status().state is JobState.deleting and TAINT in handle.status().detail)
    assert cancellation.is_waiting()
    cluster.kubelet.confirm_out_of_service("machine-1")
    assert cancellation.join() == [] and "was deleted" in str(waiter.join()[0])
    assert f"being deleted: {pod}: node machine-1" in capsys.readouterr().err


def test_a_machine_that_stops_reporting_is_named_before_its_pods_are_deleted(cluster: FakeCluster) -> None:
    """The node controller calls its pods not ready after 50 s; the taint manager deletes them five minutes later."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    pod = cluster.kubelet.stop_reporting(1)["metadata"]["name"]
    wait_until(lambda: f"running: {pod}: node machine-1 has stopped reporting" in handle._last_reported)
    (row,) = handle.launcher.jobs()  # type: ignore[attr-defined]
    assert TAINT in handle._last_reported and TAINT in row.detail
    handle.cancel()
    waiter.join()


class _Cancel:
    """Handle whose wait cancels the job."""

    def __init__(self, handle: job_handle.KubernetesHandle) -> None:
        self.wait = handle.cancel


@pytest.mark.parametrize("is_known", [False, True])
def test_a_restarted_machine_is_not_taken_for_a_lack_of_memory(
    cluster: FakeCluster, is_known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 137 with ContainerStatusUnknown of the kubelet or 255 with Unknown of containerd, without DisruptionTarget."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.default_behavior = ScriptedPod(("resumed",))
    cluster.kubelet.reboot(1, is_known)
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == [] and "node lost (node machine-1 restarted)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("TopologyAffinityError", "Pod was rejected: Resources cannot be allocated with Topology locality"),
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices"),
        ("OutOfnvidia.com/gpu", "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"),
        ("SomethingNew", "Pod was rejected"),
    ],
)
def test_a_pod_that_its_node_refuses_is_replaced_and_the_node_is_told(
    cluster: FakeCluster, reason: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.next_behaviors = [RUNS_FOREVER, RefusedPod(reason, message), RUNS_FOREVER]
    handle = cluster.launcher().submit(cluster.job(nodes=1))
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.kubelet.kill(0)
    wait_until(lambda: len(handle._reported_lost) == 2 and cluster.is_running(1))
    cluster.kubelet.finish(0)
    assert waiter.join() == []
    told = capsys.readouterr().err
    assert f"refused by its node ({message}); its replacement resumes" in told and "cannot be read" not in told


def test_a_job_that_every_node_refuses_ends_with_the_message_of_the_kubelet(cluster: FakeCluster) -> None:
    cluster.default_behavior = RefusedPod("TopologyAffinityError", "Resources cannot be allocated with Topology locality")
    with pytest.raises(JobFailed, match=r"Topology locality.*kubernetes\.excluded_machines") as caught:
        cluster.launcher().submit(cluster.job(nodes=1, restarts=0, resumptions=1)).wait()
    assert "see the log" not in str(caught.value) and "machine-0" in caught.value.remedy


def test_a_node_that_refuses_two_pods_is_left(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.next_behaviors = [RUNS_FOREVER, *[RefusedPod("UnexpectedAdmissionError", "no healthy devices")] * 2]
    cluster.default_behavior = ScriptedPod()
    cluster.launcher().submit(cluster.job()).wait()
    assert "avoids machine-1, which failed 2 times" in capsys.readouterr().err


def test_a_program_that_the_image_lacks_stops_at_once_and_a_broken_driver_does_not(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = "failed to create containerd task: nvidia-container-cli: initialization error: nvml error: driver not loaded"
    cluster.next_behaviors = [ScriptedPod((), exit_code=128, reason="StartError", termination_log=driver), RUNS_FOREVER]
    handle = cluster.launcher().submit(cluster.job("one", nodes=1))
    waiter = Waiter(handle)
    wait_until(lambda: len(handle._reported_lost) == 1 and cluster.is_running(1))
    cluster.kubelet.finish(0)
    assert waiter.join() == []
    assert f"refused by its node (StartError: {driver}); its replacement resumes" in capsys.readouterr().err
    program = 'failed to create containerd task: exec: "python": executable file not found in $PATH'
    cluster.default_behavior = ScriptedPod((), exit_code=128, reason="StartError", termination_log=program)
    started = len(cluster.kubelet.started)
    with pytest.raises(JobFailed, match=r"StartError: .*executable file not found.*kubernetes\.image"):
        cluster.launcher().submit(cluster.job("two", nodes=1)).wait()
    assert len(cluster.kubelet.started) <= started + 2 and not cluster.server.objects("jobs")[1:]


def test_an_injected_container_without_memory_does_not_end_a_running_job(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.kubelet.kill_sidecar(1)
    cluster.server.put("pods", cluster.kubelet.running_pod(0))  # one more event
    wait_until(lambda: any(len(p["status"]["containerStatuses"]) == 2 for p in handle._cached_pods()))
    handle.launcher.informers.notify(handle.key)  # type: ignore[attr-defined]
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == [] and len(cluster.kubelet.started) == 2


def test_a_pod_killed_after_its_grace_period_is_replaced(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher().submit(cluster.job()))
    wait_until(cluster.is_running)
    cluster.default_behavior = ScriptedPod()
    cluster.kubelet.kill(1)
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == []


def test_four_nodes_that_are_killed_together_count_as_one_restart(cluster: FakeCluster) -> None:
    cluster.next_behaviors = [ScriptedPod(("started",), exit_code=137)] * 8
    cluster.launcher().submit(cluster.job(nodes=4, restarts=2)).wait()
    assert len(cluster.kubelet.started) == 12


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_pods_that_were_stopped_or_lost_a_peer_use_no_restart(cluster: FakeCluster, rendering: RenderingName) -> None:
    cluster.next_behaviors = [ScriptedPod(exit_code=status) for status in (75, 69, 143, 75)]
    cluster.launcher(rendering).submit(cluster.job(restarts=0)).wait()
    assert len(cluster.kubelet.started) == 6


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_program_that_fails_ends_the_job_at_once(cluster: FakeCluster, rendering: RenderingName) -> None:
    """The agent in the pod has decided that no restart helps, or has used them up: the cluster adds none."""
    cause = "rank 1: ValueError: the loss is not a number"
    cluster.next_behaviors = [RUNS_FOREVER, ScriptedPod(("Traceback",), exit_code=1, termination_log=cause)]
    with pytest.raises(JobFailed, match="exited with status 1: rank 1: ValueError: the loss is not a number"):
        cluster.launcher(rendering).submit(cluster.job(restarts=3)).wait()
    assert len(cluster.kubelet.started) == 2


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_pod_that_fills_its_own_scratch_disk_stops_at_once(cluster: FakeCluster, rendering: RenderingName) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    message = 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi".'
    cluster.kubelet.disrupt(1, "TerminationByKubelet", message)
    (error,) = waiter.join()
    assert isinstance(error, JobFailed) and message in str(error) and "kubernetes.scratch" in error.remedy
    assert not cluster.objects()


def fail_machine_twice(cluster: FakeCluster, handle: job_handle.KubernetesHandle) -> None:
    """Restart the machine of node 1 twice."""
    for count in (2, 3):
        wait_until(lambda count=count: len(cluster.kubelet.started) == count and cluster.is_running())
        wait_until(lambda: handle._last_reported.endswith("running"))
        cluster.kubelet.reboot(1)


def find_excluded_machines(cluster: FakeCluster) -> list[str]:
    (job,) = cluster.server.objects("jobs")
    affinity = job["spec"]["template"]["spec"]["affinity"].get("nodeAffinity")
    if affinity is None:
        return []
    (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    return list(term["matchExpressions"][0]["values"])


def test_a_job_leaves_a_machine_that_failed_twice(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """The job is submitted again at once, before it has used up its restarts on that machine."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job(restarts=3))
    waiter = Waiter(handle)
    fail_machine_twice(cluster, handle)
    wait_until(lambda: len(cluster.kubelet.started) >= 5 and cluster.is_running())
    assert find_excluded_machines(cluster) == ["machine-1"]
    messages = capsys.readouterr().err
    assert "avoids machine-1, which failed 2 times, while this job exists" in messages
    assert f"to use it again: omnimri jobs cancel {handle.key}, run again; to avoid it always: kubernetes.excluded_m" in messages
    attached = cluster.launcher().submit(cluster.job(restarts=3))  # by a flow that starts now
    assert attached._avoided == {"machine-1"} and attached.job.placement.excluded_machines == ()
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


def test_an_avoided_machine_is_used_again_if_no_other_has_room(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job_handle, "READMISSION_S", 0.05)
    monkeypatch.setattr(job_handle, "CONFIRM_INTERVAL_S", 0.05)
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job(restarts=3, pending_limit_s=1e6))
    waiter = Waiter(handle)
    cluster.kubelet.spare_machines = False
    fail_machine_twice(cluster, handle)
    wait_until(lambda: "uses machine-1 again" in capsys.readouterr().err)
    wait_until(cluster.is_running)
    assert find_excluded_machines(cluster) == []
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_job_runs_and_succeeds_while_its_spare_node_finds_no_machine(cluster: FakeCluster, rendering: RenderingName) -> None:
    full = BlockedPod("", "0/2 nodes are available: 2 Insufficient cpu.", unschedulable=True)
    cluster.next_behaviors = [RUNS_FOREVER, RUNS_FOREVER, full]
    handle = cluster.launcher(rendering).submit(cluster.job(spare_nodes=1))
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    assert (handle.status().state, handle.status().nodes) == (JobState.running, 2)
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


def test_a_spare_node_takes_over_for_a_machine_without_power(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job(spare_nodes=1))
    waiter = Waiter(handle)
    wait_until(lambda: cluster.is_running(3) and handle._last_reported.endswith("running"))
    cluster.kubelet.cut_power(1)
    wait_until(lambda: handle.status().state is JobState.running and len(handle._reported_unconfirmed) == 1)
    for index in (0, 2):
        cluster.kubelet.finish(index)
    wait_until(lambda: "all nodes have finished" in handle._last_reported)
    cluster.kubelet.confirm_out_of_service("machine-1")
    assert waiter.join() == []


def test_logs_of_an_earlier_job_do_not_lengthen_the_wait_for_a_machine(cluster: FakeCluster) -> None:
    """Only a job that has run itself waits beyond the pending limit; the others would keep machines without starting."""
    job = cluster.job(pending_limit_s=0.3)
    (job.folder / "logs").mkdir(parents=True)
    for index in (0, 1):
        (job.folder / "logs" / f"{index}.earlier.log").write_text("2026-01-01T00:00:00.000000000Z started\n")
    cluster.next_behaviors = [RUNS_FOREVER]
    cluster.default_behavior = BlockedPod("", "0/2 nodes are available: 2 Insufficient cpu.", unschedulable=True)
    with pytest.raises(JobFailed, match="Insufficient cpu"):
        cluster.launcher().submit(job).wait()
    assert cluster.server.objects("pods") == []


def test_a_job_that_has_run_waits_for_its_machine_beyond_the_pending_limit(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job(pending_limit_s=0.05))
    waiter = Waiter(handle)
    wait_until(lambda: handle.log.covers_all_nodes and handle._last_reported.endswith("running"))
    cluster.default_behavior = BlockedPod("", "0/2 nodes are available: 1 node(s) were unschedulable.", unschedulable=True)
    cluster.kubelet.disrupt(1, "EvictionByEvictionAPI")
    wait_until(lambda: "were unschedulable" in handle._last_reported)
    with pytest.raises(AssertionError):
        wait_until(lambda: not waiter.is_waiting(), timeout_s=0.3)
    handle.cancel()
    waiter.join()
