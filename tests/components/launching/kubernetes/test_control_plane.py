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
from tests.doubles.apiserver import CUSTOM_GROUPS, NAMESPACE, RunningServer, condition
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
    wait_until(lambda: f"pending: {pod}: node machine-1 does not confirm" in handle._last_reported)
    assert TAINT in handle._last_reported
    assert "training resumes" not in capsys.readouterr().err
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
    wait_until(lambda: handle.status().state is JobState.running and len(handle._reported_lost) == 1)
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


def test_events_of_an_earlier_job_of_the_same_name_explain_nothing(cluster: FakeCluster) -> None:
    """They stay for an hour: the quota that they name may have been raised since."""
    old = {
        "kind": "Event",
        "type": "Warning",
        "reason": "FailedCreate",
        "metadata": {"name": "old"},
        "involvedObject": {"kind": "Job", "name": cluster.job().key},
        "message": "exceeded quota: omnimri, requested: pods=1, used: pods=0, limited: pods=1",
        "lastTimestamp": "2026-01-01T00:00:00Z",
    }
    cluster.server.put("events", old)
    cluster.controllers.admission.webhook = "no"
    with pytest.raises(JobFailed, match="denied the request: no"):
        cluster.launcher().submit(cluster.job()).wait()


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
        assert ends or handle.launcher.jobs()[0].detail == handle.status().detail == f"queue training: {message}"  # type: ignore[attr-defined]
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


# ---- objects


def test_a_runtime_that_is_still_being_deleted_is_waited_for(cluster: FakeCluster) -> None:
    """Kubeflow Trainer keeps a runtime by a finalizer for a while; what is applied to it meanwhile vanishes with it."""
    cluster.controllers.finalized = {"trainingruntimes"}
    cluster.default_behavior = RUNS_FOREVER
    cluster.launcher("trainjob").submit(cluster.job()).cancel()
    cluster.default_behavior = ScriptedPod()
    cluster.launcher("trainjob").submit(cluster.job()).wait()
    (runtime,) = cluster.server.objects("trainingruntimes")
    assert not runtime["metadata"].get("deletionTimestamp") and runtime["metadata"]["ownerReferences"]


def test_a_finalizer_that_nobody_removes_is_named(cluster: FakeCluster) -> None:
    stuck = {"name": cluster.job().key, "deletionTimestamp": "2026-11-28T12:00:00Z", "finalizers": ["example.org/held"]}
    labels = {"app.kubernetes.io/managed-by": "omnimri", "omnimri.dev/job": cluster.job().key}
    cluster.controllers.finalized = {"trainingruntimes"}
    cluster.controllers.finalizer_s = 1e6
    cluster.server.put("trainingruntimes", {"kind": "TrainingRuntime", "metadata": {**stuck, "labels": labels}, "spec": {}})
    with pytest.raises(JobFailed, match=r"TrainingRuntime .*still being deleted \(finalizers: example\.org/held\)"):
        cluster.launcher("trainjob", dataclasses.replace(FAST_RETRY, give_up_s=0.1)).submit(cluster.job())


def test_a_job_that_is_refused_leaves_no_prerequisites(cluster: FakeCluster) -> None:
    trainjobs = kmock.resource("trainer.kubeflow.org/v1alpha1/trainjobs")
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE and r.resource == trainjobs, status=422, message="no")
    with pytest.raises(JobFailed, match="rejects it"):
        cluster.launcher("trainjob").submit(cluster.job())
    wait_until(lambda: not cluster.objects())


@pytest.mark.parametrize(
    ("served", "scheduler", "group"),
    [
        (("scheduling.k8s.io",), None, "scheduling.k8s.io/v1beta1"),
        (("scheduling.x-k8s.io",), "scheduler-plugins-scheduler", "scheduling.x-k8s.io/v1alpha1"),
        (("scheduling.volcano.sh",), "volcano", "scheduling.volcano.sh/v1beta1"),
        (("scheduling.volcano.sh",), None, ""),  # the default scheduler does not know Volcano's groups
        ((), None, ""),
    ],
)
def test_the_scheduler_of_the_job_decides_about_its_pod_group(
    tmp_path: Path, served: tuple[str, ...], scheduler: str | None, group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunningServer(crds=served) as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        handle = cluster.launcher().submit(cluster.job(placement=Placement(scheduler=scheduler), pending_limit_s=1800.0))
        assert [thing["apiVersion"] for thing in server.objects("podgroups")] == ([group] if group else [])
        told = "has no gang scheduling: its nodes start one by one, and are deleted unless all start within 30 min"
        assert (told in capsys.readouterr().err) == (not group)
        handle.cancel()
        wait_until(lambda: not server.objects("podgroups"))
        handle.launcher.stop()  # type: ignore[attr-defined]


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize("is_declared", [True, False])
def test_a_pod_group_is_named_only_in_templates_whose_schema_has_it(
    tmp_path: Path, rendering: RenderingName, is_declared: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Server-side apply refuses a JobSet with a field of pods that its CustomResourceDefinition is too old for."""
    with RunningServer(crds=(*CUSTOM_GROUPS, "scheduling.k8s.io")) as server, Controllers(server) as c, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, c, kubelet, tmp_path)
        server.api.undeclared_fields = set() if is_declared else {"schedulingGroup"}
        handle = cluster.launcher(rendering).submit(cluster.job())
        handle.wait()
        is_grouped = is_declared or rendering == "job"
        assert len(server.objects("podgroups")) == is_grouped
        assert ("no gang scheduling" in capsys.readouterr().err) != is_grouped
        handle.launcher.stop()  # type: ignore[attr-defined]


# ---- the API server


def test_a_proxy_that_sends_a_date_in_retry_after_is_waited_for(cluster: FakeCluster) -> None:
    for value in ("Wed, 21 Oct 2015 07:28:00 GMT", "soon", "0"):
        cluster.server.inject_fault(lambda r: r.action is kmock.action.LIST, status=429, retry_after=value)
    assert cluster.launcher().jobs() == []


def test_an_api_server_restored_from_a_backup_is_listed_again(cluster: FakeCluster) -> None:
    """Its versions are older than that of the watch: repeating the watch would fail for ever."""
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher().submit(cluster.job()))
    wait_until(cluster.is_running)
    lists_before = sum(r.action is kmock.action.LIST for r in cluster.server.requests())
    message = "Too large resource version: 900, current: 17"
    cluster.server.inject_fault(lambda r: r.action is kmock.action.WATCH, times=2, status=504, message=message)
    cluster.server.abort_streams()
    wait_until(lambda: sum(r.action is kmock.action.LIST for r in cluster.server.requests()) >= lists_before + 2)
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


def test_a_namespace_that_does_not_exist_is_named_with_its_setting(cluster: FakeCluster) -> None:
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE, status=404, message='namespaces "omnimri" not found')
    with pytest.raises(JobFailed, match=r"namespaces .* not found.*kubernetes\.namespace"):
        cluster.launcher().submit(cluster.job())


def test_the_message_of_a_failing_webhook_is_shown_while_it_is_waited_for(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    message = 'failed calling webhook "mjob.kb.io": connection refused'
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE, status=500, message=message)
    cluster.launcher().submit(cluster.job()).wait()
    assert f"returned 500 ({message}); retrying" in capsys.readouterr().err


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
