"""The launcher reacts to evictions, lost machines, quotas and other acts of a control plane, and tells the user."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import kmock
import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching import JobState, Placement
from components.launching.kubernetes import failures, job_handle, launcher
from components.launching.kubernetes.manifests import RenderingName
from tests.doubles.apiserver import NAMESPACE, RunningServer, condition
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import BlockedPod, Kubelet, ScriptedPod
from tests.helpers.fake_cluster import FAST_RETRY, RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until
from tests.helpers.manifest_checks import kustomize

TAINT = "kubectl taint nodes machine-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_handle, "MISSING_PODS_S", 0.05)
    monkeypatch.setattr(job_handle, "SILENT_CONTROLLER_S", 0.1)
    monkeypatch.setattr(launcher, "ORPHAN_LIMIT_S", 0.1)


# ---- machines


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
    for thing in kustomize("k8s/overlays/onprem-gpu"):
        if thing["kind"] == "PodDisruptionBudget":
            cluster.server.put("poddisruptionbudgets", {**thing, "metadata": dict(thing["metadata"])})
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.default_behavior = ScriptedPod(("resumed",))
    drain(cluster, "machine-1")
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == []


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
    for module in (failures, job_handle, launcher):
        monkeypatch.setattr(module, "UNREACHABLE_MARGIN_S", -1000.0 if module is failures else 0.05)
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    pod = cluster.kubelet.cut_power(1)["metadata"]["name"]
    wait_until(lambda: TAINT in handle._last_reported)
    assert f"pending: {pod}: node machine-1 does not confirm" in handle._last_reported
    assert "training resumes" not in capsys.readouterr().err
    (row,) = handle.launcher.jobs()  # type: ignore[attr-defined]
    assert row.state is JobState.pending and pod in row.detail and TAINT in row.detail
    cancellation = Waiter(_Cancel(handle))  # type: ignore[arg-type]
    wait_until(lambda: handle.status().state is JobState.deleting)
    assert TAINT in handle.status().detail and cancellation.is_waiting()
    cluster.kubelet.confirm_out_of_service("machine-1")
    assert cancellation.join() == [] and "was deleted" in str(waiter.join()[0])
    assert f"being deleted: {pod}: node machine-1" in capsys.readouterr().err


class _Cancel:
    """Handle whose wait cancels the job."""

    def __init__(self, handle: job_handle.KubernetesHandle) -> None:
        self.wait = handle.cancel


def test_a_restarted_machine_is_not_taken_for_a_lack_of_memory(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """The kubelet reports status 137 and ContainerStatusUnknown, without DisruptionTarget."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.default_behavior = ScriptedPod(("resumed",))
    cluster.kubelet.reboot(1)
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == [] and "node lost (node machine-1 restarted)" in capsys.readouterr().err


def test_a_pod_killed_after_its_grace_period_is_replaced(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher().submit(cluster.job()))
    wait_until(cluster.is_running)
    cluster.default_behavior = ScriptedPod()
    cluster.kubelet.kill(1)
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == []


def test_four_nodes_that_fail_together_count_as_one_restart(cluster: FakeCluster) -> None:
    cluster.next_behaviors = [ScriptedPod(("lost a peer",), exit_code=1)] * 8
    cluster.launcher().submit(cluster.job(nodes=4, restarts=2)).wait()
    assert len(cluster.kubelet.started) == 12


def test_a_machine_that_failed_twice_is_avoided_by_the_resubmitted_job(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job(restarts=1))
    waiter = Waiter(handle)
    for count in (2, 3, 4):
        wait_until(lambda count=count: len(cluster.kubelet.started) == count and cluster.is_running())
        wait_until(lambda: handle._last_reported.endswith("running"))
        if count == 4:
            cluster.default_behavior = ScriptedPod()
        cluster.kubelet.reboot(1)
    assert waiter.join() == []
    (job,) = cluster.server.objects("jobs")
    affinity = job["spec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert affinity["nodeSelectorTerms"][0]["matchExpressions"][0]["values"] == ["machine-1"]


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


# ---- admission


def test_one_of_two_pods_refused_by_a_quota_in_use_is_told_and_ends_after_the_pending_limit(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.default_behavior = RUNS_FOREVER
    cluster.controllers.admission.quota = {"pods": "3"}
    other = cluster.launcher().submit(cluster.job("other"))
    wait_until(cluster.is_running)
    with pytest.raises(JobFailed, match="exceeded quota: omnimri, requested: pods=1, used: pods=3, limited: pods=3"):
        cluster.launcher().submit(cluster.job()).wait()
    assert "a_stage: pending: 1 of 2 pods exist" in capsys.readouterr().err
    assert cluster.is_running() and other.status().state is JobState.running  # the first pod does not keep its machine


def test_a_request_above_the_hard_limit_stops_at_once(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    cluster.controllers.admission.quota = {"requests.cpu": "6"}
    with pytest.raises(JobFailed, match=r"2 nodes need 2 x 4 requests\.cpu of 6, which is never free.*raise the quota"):
        cluster.launcher().submit(cluster.job(pending_limit_s=1e6)).wait()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"service_accounts": set()}, r'serviceaccount "training" not found.*kubernetes\.service_account'),
        ({"webhook": "images need a digest"}, r"denied the request: images need a digest.*administrator"),
        ({"quota": {"pods": "0"}}, r"exceeded quota"),
    ],
)
def test_the_events_explain_why_no_pods_are_created(cluster: FakeCluster, policy: dict[str, object], message: str) -> None:
    for name, value in policy.items():
        setattr(cluster.controllers.admission, name, value)
    with pytest.raises(JobFailed, match=message):
        cluster.launcher().submit(cluster.job()).wait()


def test_a_missing_claim_in_the_words_of_the_scheduler_stops_after_seconds(cluster: FakeCluster) -> None:
    cluster.kubelet.claims = set()
    with pytest.raises(JobFailed, match=r'persistentvolumeclaim "state" not found.*kubernetes\.volumes'):
        cluster.launcher().submit(cluster.job(pending_limit_s=1e6)).wait()


def test_a_webhook_that_denies_is_not_a_missing_permission(cluster: FakeCluster) -> None:
    text = 'admission webhook "validator.trainingruntime.trainer.kubeflow.org" denied the request: must have container node'
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE, status=403, message=text)
    with pytest.raises(JobFailed, match=r"^admission: .*must have container node") as caught:
        cluster.launcher("trainjob").submit(cluster.job())
    assert "rbac.yaml" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "ends"),
    [
        ("LocalQueue training doesn't exist", True),
        ("insufficient unused quota for nvidia.com/gpu in flavor f, 8 more needed", False),
    ],
)
def test_the_reason_of_a_queue_is_told_and_a_wrong_queue_ends_the_job(tmp_path: Path, message: str, ends: bool) -> None:
    with RunningServer(crds=("kueue.x-k8s.io",)) as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        controllers.admit_jobs = False
        handle = cluster.launcher().submit(cluster.job(placement=Placement(queue="training")))
        labels = {"kueue.x-k8s.io/job-uid": handle.main["metadata"]["uid"]}
        conditions = [condition("QuotaReserved", "Inadmissible" if ends else "Pending", message, "False")]
        server.put(
            "workloads", {"kind": "Workload", "metadata": {"name": "w", "labels": labels}, "status": {"conditions": conditions}}
        )
        waiter = Waiter(handle)
        wait_until(lambda: handle._last_reported == f"a_stage: queued: queue training: {message}")
        if not ends:
            handle.cancel()
        (error,) = waiter.join()
        assert ("kubernetes.queue" in str(error)) == ends
        handle.launcher.stop()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("rendering", "plural"), [("jobset", "jobsets"), ("trainjob", "trainjobs")])
def test_a_custom_resource_without_a_controller_is_told(cluster: FakeCluster, rendering: RenderingName, plural: str) -> None:
    cluster.controllers.absent = {plural}
    with pytest.raises(JobFailed, match=r"no controller acts on .*kubernetes\.rendering=job"):
        cluster.launcher(rendering).submit(cluster.job()).wait()


# ---- the API server


def test_an_api_server_that_starts_and_refuses_everything_is_waited_for(cluster: FakeCluster) -> None:
    """Kubernetes issue 121635: 403 until the roles are read. These requests were permitted before."""
    cluster.default_behavior = RUNS_FOREVER
    cluster_launcher = cluster.launcher()
    handle = cluster_launcher.submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(cluster.is_running)
    cluster_launcher.jobs()
    with cluster.server.starting():
        listing = Waiter(_List(cluster_launcher))  # type: ignore[arg-type]
        refused = len(cluster.server.requests())
        wait_until(lambda: len(cluster.server.requests()) > refused + 5)
        assert listing.is_waiting() and waiter.is_waiting()
    assert listing.join() == []
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


class _List:
    """Handle whose wait lists the jobs."""

    def __init__(self, cluster_launcher: launcher.KubernetesLauncher) -> None:
        self.wait = cluster_launcher.jobs


def test_a_permission_that_stays_missing_is_reported_after_the_patience_is_over(cluster: FakeCluster) -> None:
    cluster_launcher = cluster.launcher(retry=dataclasses.replace(FAST_RETRY, forbidden_s=0.1))
    cluster_launcher.jobs()
    cluster.server.api.grants = frozenset()
    with pytest.raises(JobFailed, match=r"not allowed to list .*rbac\.yaml"):
        cluster_launcher.jobs()


def test_a_log_that_the_kubelet_cannot_send_is_told_and_does_not_delay_the_success(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.server.inject_fault(lambda r: r.subresource == "log", times=10**6, status=500, message="no such file")
    cluster.launcher().submit(cluster.job(nodes=1)).wait()
    assert "cannot be read (500: no such file); later: kubectl logs a-stage" in capsys.readouterr().err


def test_the_service_of_another_owner_is_reported(cluster: FakeCluster) -> None:
    name = cluster.job().key
    foreign = {
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"selector": {"app": "web"}, "ports": []},
    }
    cluster.server.put("services", foreign)
    with pytest.raises(JobFailed, match=f"Service {name}: another manager owns a field.*kubectl"):
        cluster.launcher().submit(cluster.job())
    wait_until(lambda: not cluster.server.objects("jobs"))


def test_pods_that_outlived_their_job_are_not_joined_by_a_second_writer(cluster: FakeCluster) -> None:
    """``kubectl delete job --cascade=orphan`` leaves them running on the same checkpoints."""
    cluster.default_behavior = RUNS_FOREVER
    job = cluster.job()
    cluster.launcher().submit(job)
    wait_until(cluster.is_running)
    cluster.controllers.orphan("jobs", job.key)
    names = sorted(pod["metadata"]["name"] for pod in cluster.server.objects("pods"))
    with pytest.raises(JobFailed, match=f"would write the same checkpoints: {names[0]}, {names[1]}.*delete pod {names[0]}"):
        cluster.launcher().submit(job)
    assert cluster.server.objects("jobs") == []
