"""The failure table of docs/kubernetes.md, failures of pods: reaction, and message to the user."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from components.errors import JobFailed
from components.launching import JobState, Placement
from components.launching.kubernetes import job_handle, job_log
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.manifests import JOBS, RenderingName
from tests.doubles.apiserver import Object
from tests.doubles.kubelet import BlockedPod, ScriptedPod
from tests.helpers.fake_cluster import EVENT_TIMEOUT_S, RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until


class ManualClock:
    """Clock of the waiting loop that only the test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.reads = 0.0, 0
        monkeypatch.setattr(job_handle, "time", SimpleNamespace(monotonic=self._read))

    def _read(self) -> float:
        self.reads += 1
        return self.now_s

    def let_loop_look(self, handle: KubernetesHandle) -> None:
        """Return when the waiting loop has looked at the clock twice more: it has acted on the current time."""
        for _ in range(2):
            reads = self.reads
            handle.launcher.informers.notify(handle.key)  # type: ignore[attr-defined]
            wait_until(lambda reads=reads: self.reads > reads)


def count_failures(job: Object, pod: Object) -> str:
    """Pod failure policy of a cluster that counts disruptions as failures."""
    return "Count"


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize(
    ("reason", "kind"),
    [("EvictionByEvictionAPI", "evicted"), ("DeletionByTaintManager", "node lost"), ("PreemptionByScheduler", "preempted")],
)
def test_a_pod_that_lost_its_machine_is_replaced_and_the_job_succeeds(
    cluster: FakeCluster, rendering: RenderingName, reason: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The controller replaces the pod under the same index; torchrun admits it, and training resumes from its last checkpoint."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.default_behavior = ScriptedPod(("resumed",))
    cluster.kubelet.disrupt(1, reason, "the node shuts down")
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    assert waiter.join() == []
    assert "rank 1: resumed" in handle.logs()
    assert f"{kind} (the node shuts down); its replacement resumes from the last checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_job_that_evictions_ended_is_submitted_again(
    cluster: FakeCluster, rendering: RenderingName, capsys: pytest.CaptureFixture[str]
) -> None:
    """The launcher resubmits the job if the cluster counts evictions as failures, or if they exceed its limits."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job(restarts=0))
    waiter = Waiter(handle)
    wait_until(cluster.is_running)
    first_uid = handle.main["metadata"]["uid"]
    cluster.default_behavior = ScriptedPod(("resumed",))
    cluster.controllers.failure_policy_action = count_failures  # type: ignore[method-assign]
    evict(cluster, 1, "The node was low on resource: memory.")
    assert waiter.join() == [] and handle.main["metadata"]["uid"] != first_uid
    messages = capsys.readouterr().err
    assert "evicted (The node was low on resource: memory.); resuming from its last checkpoint (1 of 3)" in messages
    assert "rank 0: resumed" in handle.logs()


def evict(cluster: FakeCluster, index: int, message: str) -> None:
    pod = cluster.kubelet.running_pod(index)
    pod["status"].update(phase="Failed", reason="Evicted", message=message)
    cluster.server.put("pods", pod)


def test_more_evictions_than_resumptions_stop_the_job_with_a_message(cluster: FakeCluster) -> None:
    cluster.controllers.failure_policy_action = count_failures  # type: ignore[method-assign]
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher().submit(cluster.job(restarts=0, resumptions=0, nodes=1)))
    wait_until(lambda: cluster.is_running(1))
    evict(cluster, 0, "disk pressure")
    (error,) = waiter.join()
    assert "evicted (disk pressure), 1 times" in str(error) and "run again" in str(error)


def assert_out_of_memory(cluster: FakeCluster, error: BaseException) -> None:
    assert isinstance(error, JobFailed)
    assert "memory limit" in str(error) and "kubernetes.memory" in error.remedy and "micro_batch" in error.remedy


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_out_of_memory_stops_at_once_and_names_the_setting(cluster: FakeCluster, rendering: RenderingName) -> None:
    """The cluster would replace the pod: status 137 alone has many causes."""
    cluster.default_behavior = RUNS_FOREVER
    cluster.controllers.backoff_s = 10.0
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.kubelet.kill_out_of_memory(1)
    (error,) = waiter.join()
    assert_out_of_memory(cluster, error)
    assert not cluster.objects()


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_out_of_memory_is_named_if_the_failed_job_is_seen_before_the_status_of_its_pod(
    cluster: FakeCluster, rendering: RenderingName
) -> None:
    """The watch of pods delivers nothing after the kill: only a list shows why the job failed."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher(rendering).submit(cluster.job(restarts=0))
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    cluster.server.pause_watch("pods")
    cluster.kubelet.kill_out_of_memory(1)
    (error,) = waiter.join()
    assert_out_of_memory(cluster, error)


@pytest.mark.parametrize(("rendering", "plural"), [("job", "jobs"), ("jobset", "jobsets")])
def test_out_of_memory_is_named_if_the_pod_has_no_final_status_when_the_job_fails(
    cluster: FakeCluster, rendering: RenderingName, plural: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_handle, "DIAGNOSIS_TIMEOUT_S", EVENT_TIMEOUT_S)
    monkeypatch.setattr(job_log, "DRAIN_TIMEOUT_S", 0.0)  # the other pod keeps running
    cluster.default_behavior = RUNS_FOREVER
    monkeypatch.setattr(cluster.kubelet, "_stop", _use_grace_period)
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running"))
    lists_before = count_pod_lists(cluster)
    fail_job(cluster, plural)
    wait_until(lambda: count_pod_lists(cluster) >= lists_before + 2)
    assert waiter.is_waiting()
    cluster.kubelet.kill_out_of_memory(1)
    (error,) = waiter.join()
    assert_out_of_memory(cluster, error)


def test_a_failed_job_whose_pods_have_no_final_status_is_reported_with_the_message_of_its_controller(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_handle, "DIAGNOSIS_TIMEOUT_S", 0.0)
    monkeypatch.setattr(job_log, "DRAIN_TIMEOUT_S", 0.0)
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher("jobset").submit(cluster.job()))
    wait_until(cluster.is_running)
    fail_job(cluster, "jobsets")
    (error,) = waiter.join()
    assert "PodFailurePolicy: a pod matches FailJob" in str(error)


async def _use_grace_period(pod: Object) -> None:
    """Keep a deleted pod running, as a pod that uses its grace period."""


def fail_job(cluster: FakeCluster, plural: str) -> None:
    (main,) = cluster.server.objects(plural)
    cluster.server.run(cluster.controllers.set_condition(plural, main, "Failed", "PodFailurePolicy", "a pod matches FailJob"))


def count_pod_lists(cluster: FakeCluster) -> int:
    return sum(
        request.action is not None and request.action.value == "LIST" and request.resource.plural == "pods"
        for request in cluster.server.requests()
    )


def test_an_image_that_cannot_be_pulled_stops_after_its_limit_with_the_remedy(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(monkeypatch)
    cluster.default_behavior = BlockedPod("ImagePullBackOff", "Back-off pulling image: unauthorized")
    handle = cluster.launcher().submit(cluster.job(image_limit_s=300.0))
    waiter = Waiter(handle)
    wait_until(lambda: "ImagePullBackOff" in handle._last_reported)
    clock.let_loop_look(handle)
    clock.now_s = 299.0
    clock.let_loop_look(handle)
    assert waiter.is_waiting()
    clock.now_s = 300.0
    handle.launcher.informers.notify(handle.key)  # type: ignore[attr-defined]
    (error,) = waiter.join()
    assert isinstance(error, JobFailed) and "ImagePullBackOff" in str(error) and "unauthorized" in str(error)
    assert "kubernetes.image" in error.remedy
    assert cluster.server.objects("jobs") == [] and cluster.server.objects("services") == []  # the job was deleted


def test_an_invalid_image_name_stops_at_once(cluster: FakeCluster) -> None:
    cluster.default_behavior = BlockedPod("InvalidImageName", "couldn't parse image reference")
    with pytest.raises(JobFailed, match="InvalidImageName"):
        cluster.launcher().submit(cluster.job(image_limit_s=1e6)).wait()


def test_a_missing_secret_or_claim_is_named(cluster: FakeCluster) -> None:
    cluster.kubelet.secrets = set()
    with pytest.raises(JobFailed, match=r'secret "mlflow" not found.*kubernetes\.secrets'):
        cluster.launcher().submit(cluster.job(secrets=("mlflow",))).wait()


def test_no_machine_with_gpus_stops_after_its_limit_and_quotes_the_scheduler(cluster: FakeCluster) -> None:
    cluster.default_behavior = BlockedPod("", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", unschedulable=True)
    with pytest.raises(JobFailed, match=r"Insufficient nvidia\.com/gpu.*gpus_per_node"):
        cluster.launcher().submit(cluster.job(pending_limit_s=0.2)).wait()
    assert cluster.server.objects("pods") == []


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_program_that_fails_shows_the_end_of_its_log(cluster: FakeCluster, rendering: RenderingName) -> None:
    cluster.default_behavior = ScriptedPod((*(f"line {n}" for n in range(30)), "ValueError: the loss"), exit_code=1)
    handle = cluster.launcher(rendering).submit(cluster.job(restarts=0, nodes=1))
    with pytest.raises(JobFailed, match=r"exited with status 1(.|\n)*ValueError: the loss(.|\n)*a_stage\.log") as caught:
        handle.wait()
    assert "line 29" in str(caught.value) and "line 3\n" not in str(caught.value)


def test_a_configuration_error_is_not_retried(cluster: FakeCluster) -> None:
    cluster.default_behavior = ScriptedPod(("job.json does not exist: mount the volume",), exit_code=2)
    with pytest.raises(JobFailed, match=r"job\.json does not exist"):
        cluster.launcher().submit(cluster.job(nodes=1)).wait()
    assert len(cluster.kubelet.started) == 1


def test_a_job_suspended_by_kueue_is_waited_for_without_limit_and_names_its_queue(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(monkeypatch)
    cluster.controllers.admit_jobs = False
    handle = cluster.launcher().submit(cluster.job(placement=Placement(queue="training"), pending_limit_s=0.05))
    waiter = Waiter(handle)
    wait_until(lambda: "waits for quota in queue training" in handle._last_reported)
    clock.now_s = 1e6
    clock.let_loop_look(handle)
    assert waiter.is_waiting() and cluster.server.objects("pods") == []
    (job,) = cluster.server.objects("jobs")
    job["spec"]["suspend"] = False
    cluster.server.put("jobs", job)
    assert waiter.join() == []


def test_a_deleted_job_is_called_deleted_however_often_it_is_looked_for(cluster: FakeCluster) -> None:
    """Whoever looked first used to be told so; everyone else was told for 30 s that the job had just been created."""
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    wait_until(lambda: handle._observe()[0].state is JobState.running)
    cluster.launcher().find(handle.key).cancel()
    wait_until(lambda: not handle.launcher.informers.get(JOBS).objects_of(handle.key))
    assert [handle._find_main() for _ in range(3)] == [None, None, None]


def test_ctrl_c_cancels_the_job(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    handle._report = _interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        handle.wait()
    assert cluster.objects() == []


def _interrupt(observation: object) -> None:
    raise KeyboardInterrupt
