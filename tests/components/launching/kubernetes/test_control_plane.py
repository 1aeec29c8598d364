"""The launcher reacts to quotas, policies, faults and other acts of a control plane, and tells the user."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import kmock
import pytest

from components.errors import JobFailed
from components.launching import JobState, Placement
from components.launching.kubernetes import launcher
from components.launching.kubernetes.manifests import RenderingName
from tests.doubles.apiserver import CUSTOM_GROUPS, RunningServer, condition
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import Kubelet, ScriptedPod
from tests.helpers.fake_cluster import FAST_RETRY, RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until

pytestmark = pytest.mark.usefixtures("short_limits")


# ---- admission


def test_one_of_two_pods_refused_by_a_quota_in_use_is_told_and_ends_after_the_pending_limit(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.default_behavior = RUNS_FOREVER
    cluster.controllers.admission.quota = {"pods": "3"}
    other = cluster.launcher().submit(cluster.job("other"))
    wait_until(cluster.is_running)
    with pytest.raises(JobFailed, match="exceeded quota: omnimri, requested: pods=1, used: pods=3, limited: pods=3"):
        cluster.launcher().submit(cluster.job(pending_limit_s=0.3)).wait()
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
        cluster.launcher().submit(cluster.job(pending_limit_s=0.3)).wait()


def test_a_missing_claim_in_the_words_of_the_scheduler_stops_after_seconds(cluster: FakeCluster) -> None:
    cluster.kubelet.claims = set()
    with pytest.raises(JobFailed, match=r'persistentvolumeclaim "state" not found.*kubernetes\.volumes'):
        cluster.launcher().submit(cluster.job(pending_limit_s=1e6)).wait()


def test_a_missing_claim_template_in_the_words_of_the_scheduler_stops_after_seconds(cluster: FakeCluster) -> None:
    cluster.kubelet.claim_templates = set()
    job = cluster.job(placement=Placement(resource_claims={"nic": "rdma-nic"}))
    with pytest.raises(JobFailed, match=r"ResourceClaim not created yet.*kubernetes\.resource_claims"):
        cluster.launcher().submit(job).wait()


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
        ("couldn't assign flavors to pod set main: resource rdma/hca unavailable in ClusterQueue", True),
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
        assert (message in str(error)) == ends
        handle.launcher.stop()  # type: ignore[attr-defined]


def test_a_queue_whose_kueue_does_nothing_is_told(cluster: FakeCluster) -> None:
    """Its controller does not run, or does not manage the namespace or the kind: no Workload appears."""
    cluster.controllers.admit_jobs = False
    handle = cluster.launcher().submit(cluster.job(placement=Placement(queue="training")))
    waiter = Waiter(handle)
    wait_until(lambda: "Kueue has made no Workload" in handle.status().detail)
    handle.launcher.informers.notify(handle.key)  # type: ignore[attr-defined]
    wait_until(lambda: "Kueue has made no Workload" in handle._last_reported)
    handle.cancel()
    waiter.join()


@pytest.mark.parametrize("served", [False, True])
def test_a_queue_on_a_cluster_without_kueue_is_refused(tmp_path: Path, served: bool) -> None:
    """The label of the queue would change nothing: no quota, and no gang."""
    newer = ("kueue.x-k8s.io", "v1beta1") if served else None  # too old
    crds = CUSTOM_GROUPS if served else ()
    with RunningServer(crds=crds, newer=newer) as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        job = cluster.job(placement=Placement(queue="training"))
        with pytest.raises(JobFailed, match=r"^kubernetes\.queue=training: .*no Kueue.*kubernetes\.queue=null"):
            cluster.launcher().submit(job)
        assert cluster.objects() == []


@pytest.mark.parametrize(("rendering", "plural"), [("jobset", "jobsets"), ("trainjob", "trainjobs")])
def test_a_custom_resource_without_a_controller_is_told(cluster: FakeCluster, rendering: RenderingName, plural: str) -> None:
    cluster.controllers.absent = {plural}
    with pytest.raises(JobFailed, match=r"no controller acts on .*kubernetes\.rendering=job"):
        cluster.launcher(rendering).submit(cluster.job(pending_limit_s=0.3)).wait()


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


@pytest.mark.parametrize("rendering", ["jobset", "trainjob"])
def test_a_field_that_the_installed_resource_does_not_declare_stops_at_once(cluster: FakeCluster, rendering: RenderingName) -> None:
    """The API server answers 500, which otherwise is repeated for 15 min."""
    cluster.server.api.undeclared_fields = {"podFailurePolicy"}
    with pytest.raises(JobFailed, match=r"field not declared in schema.*CustomResourceDefinitions"):
        cluster.launcher(rendering).submit(cluster.job())
    wait_until(lambda: not cluster.objects())


@pytest.mark.parametrize(
    "message",
    [
        "failed to create typed patch object (x; jobset.x-k8s.io/v1alpha2, Kind=JobSet): .spec: expected list, got &{map}",
        "etcdserver: request is too large",
        "rpc error: code = ResourceExhausted desc = trying to send message larger than max (3 vs. 2)",
    ],
)
def test_a_500_that_comes_back_each_time_stops_at_once(cluster: FakeCluster, message: str) -> None:
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE, times=10**6, status=500, message=message)
    with pytest.raises(JobFailed, match=r"rejects it \(500\)"):
        cluster.launcher("jobset").submit(cluster.job())


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


def test_credentials_that_a_starting_api_server_rejects_are_sent_again(cluster: FakeCluster) -> None:
    """It rejects the tokens of service accounts until it has read the accounts; without an outage, 401 is final."""
    cluster_launcher = cluster.launcher()
    cluster.server.inject_fault(lambda r: r.action is kmock.action.LIST, reset=True)
    cluster.server.inject_fault(lambda r: r.action is kmock.action.LIST, times=3, status=401)
    assert cluster_launcher.jobs() == []


def test_credentials_that_stay_rejected_after_an_outage_are_reported(cluster: FakeCluster) -> None:
    cluster_launcher = cluster.launcher(retry=dataclasses.replace(FAST_RETRY, forbidden_s=0.1))
    cluster.server.inject_fault(lambda r: r.action is kmock.action.LIST, reset=True)
    cluster.server.inject_fault(lambda r: r.action is kmock.action.LIST, times=10**6, status=401)
    with pytest.raises(JobFailed, match="rejects the credentials"):
        cluster_launcher.jobs()


def test_a_verb_that_was_never_permitted_is_refused_at_once_although_others_are(cluster: FakeCluster) -> None:
    cluster_launcher = cluster.launcher()
    cluster_launcher.jobs()
    cluster.server.api.grants -= {("batch", "jobs", "create")}
    with pytest.raises(JobFailed, match=r"not allowed to patch .*cannot create resource"):
        cluster_launcher.submit(cluster.job())
    refusals = [r for r in cluster.server.requests() if r.action is kmock.action.UPDATE]
    assert len(refusals) == 1


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


@pytest.mark.parametrize(
    "message",
    [
        "unable to retrieve container logs for containerd://8ea1",
        'failed to try resolving symlinks in path "/var/log/pods/x/node/0.log": lstat: no such file or directory\n',
        "failed to create fsnotify watcher: too many open files",
    ],
)
def test_a_message_that_a_kubelet_sends_as_a_log_is_told_and_every_line_is_kept(
    cluster: FakeCluster, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 200, and the message has no timestamp; as a timestamp it would sort after all dates."""
    cluster.server.api.log_message, cluster.server.api.message_times = message, 10**6
    handle = cluster.launcher().submit(cluster.job(nodes=1))
    handle.wait()
    assert f"cannot be read ({message.strip()}); later: kubectl logs a-stage" in capsys.readouterr().err
    assert handle.logs().splitlines() == ["started", "done"]


def test_the_reader_of_a_log_that_cannot_be_read_is_told(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    """``omnimri jobs logs`` must not end as if the log were empty."""
    job = cluster.job(nodes=1)
    cluster.launcher().submit(job)
    wait_until(lambda: any(pod["status"]["phase"] == "Succeeded" for pod in cluster.server.objects("pods")))
    cluster.server.api.log_message, cluster.server.api.message_times = (
        "unable to retrieve container logs for containerd://8ea1",
        10**6,
    )
    assert list(cluster.launcher().find(job.key).stream(follow=False)) == ["started", "done"]
    assert "cannot be read (unable to retrieve container logs" in capsys.readouterr().err


def test_a_log_whose_reading_fails_for_a_while_is_complete_and_nothing_is_told(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.server.api.log_message, cluster.server.api.message_times = "unable to retrieve container logs for containerd://8ea1", 2
    cluster.default_behavior = ScriptedPod(tuple(f"line {n}" for n in range(20)), pause_s=0.01)
    handle = cluster.launcher().submit(cluster.job(nodes=1))
    handle.wait()
    assert handle.logs().splitlines() == [f"line {n}" for n in range(20)]
    assert "cannot be read" not in capsys.readouterr().err


def test_a_bad_request_for_the_log_of_a_finished_pod_is_not_its_end(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    message = "a container name must be specified for pod x, choose one of: [proxy node]"
    cluster.server.inject_fault(lambda r: r.subresource == "log", times=10**6, status=400, message=message)
    cluster.launcher().submit(cluster.job(nodes=1)).wait()
    assert f"cannot be read (400: {message})" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("rendering", "plural", "root"), [("jobset", "jobsets", "job {}-node-0"), ("trainjob", "trainjobs", "jobset {}")]
)
def test_a_job_that_outlived_its_jobset_is_named_since_it_replaces_deleted_pods(
    cluster: FakeCluster, rendering: RenderingName, plural: str, root: str
) -> None:
    cluster.default_behavior = RUNS_FOREVER
    job = cluster.job()
    cluster.launcher(rendering).submit(job)
    wait_until(cluster.is_running)
    cluster.controllers.orphan(plural, job.key)
    for now in (rendering, "job"):
        with pytest.raises(
            JobFailed, match=f"would write the same checkpoints.*kubectl --namespace omnimri delete {root.format(job.key)}\\)$"
        ):
            cluster.launcher(now).submit(job)  # type: ignore[arg-type]
    assert cluster.is_running()
