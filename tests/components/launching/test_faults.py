"""The fault table of docs/kubernetes.md, row by row: what happens, and what the user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import kmock
import pytest
import yaml

from components.errors import JobFailed
from components.launching import JobState
from components.launching.cluster import Cluster, Patience
from components.launching.handle import KubernetesHandle
from components.launching.kubernetes import KubernetesLauncher
from components.launching.rendering import MAIN, RenderingName
from components.provenance import REPOSITORY
from tests.components.launching.conftest import QUICK, SCALE, World
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.kubelet import Script, Stuck

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


# ---- what befalls pods


@pytest.mark.parametrize("rendering", RENDERINGS)
@pytest.mark.parametrize(
    ("reason", "said"),
    [("EvictionByEvictionAPI", "evicted"), ("DeletionByTaintManager", "node lost"), ("PreemptionByScheduler", "preempted")],
)  # fmt: skip
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
    monkeypatch.setattr("components.launching.handle.NO_PODS_S", 0.05)
    monkeypatch.setattr(world.controllers, "_pod", lambda job, index: _nothing())
    world.server.put("events", {
        "kind": "Event", "type": "Warning", "metadata": {"name": "e"}, "reason": "FailedCreate",
        "involvedObject": {"name": world.job().key}, "message": "serviceaccount \"training\" not found",
    })  # fmt: skip
    with pytest.raises(JobFailed, match='serviceaccount "training" not found'):
        world.launcher().submit(world.job()).wait()


async def _nothing() -> None:
    return None


# ---- what befalls requests


def test_forbidden_names_the_verb_the_path_and_the_remedy(world: World) -> None:
    world.server.fail(lambda r: r.action is kmock.action.UPDATE, status=403, message='User "x" cannot patch resource "jobs"')
    with pytest.raises(JobFailed, match=r"may not patch /apis/batch/v1/namespaces/omnimri/jobs/.*rbac\.yaml"):
        world.launcher().submit(world.job())


def test_a_job_whose_service_is_forbidden_is_not_left_half_made(world: World) -> None:
    services = kmock.resource("v1/services")
    world.server.fail(lambda r: r.action is kmock.action.UPDATE and r.resource == services, status=403, message="no")
    with pytest.raises(JobFailed, match="services"):
        world.launcher().submit(world.job())
    until(lambda: not _ours(world))


def test_an_expired_login_is_said_at_once(world: World) -> None:
    world.server.fail(lambda r: r.action is kmock.action.FETCH, status=401)
    with pytest.raises(JobFailed, match=r"does not know us.*log in again"):
        world.launcher().submit(world.job())


def test_a_quota_is_not_called_a_permission(world: World) -> None:
    world.server.fail(lambda r: r.action is kmock.action.UPDATE, status=403, message="exceeded quota: omnimri, requested: pods=2")
    with pytest.raises(JobFailed, match=r"^quota: exceeded quota.*lower kubernetes\.nodes"):
        world.launcher().submit(world.job())


def test_a_conflict_with_another_process_of_ours_is_the_same_job(world: World) -> None:
    """Both found nothing, both applied; the second learns that it is there already, and waits for it."""
    other = world.launcher().submit(world.job())
    world.server.fail(lambda r: r.action is kmock.action.FETCH, status=404, message="not yet")
    world.server.fail(lambda r: r.action is kmock.action.UPDATE, status=409, message="the object has been modified")
    ours = world.launcher().submit(world.job())
    assert ours.main["metadata"]["uid"] == other.main["metadata"]["uid"]
    ours.wait()


def test_a_name_that_somebody_else_uses_is_left_alone(world: World) -> None:
    theirs = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": world.job().key},
        "spec": {"completions": 0, "suspend": True},
    }
    world.server.put("jobs", {**theirs, "metadata": {**theirs["metadata"], "labels": {}}})
    with pytest.raises(JobFailed, match="OmniMRI did not make"):
        world.launcher().submit(world.job())
    assert len(world.server.objects("jobs")) == 1


@pytest.mark.parametrize(
    "how",
    [{"status": 429, "retry_after": "0"}, {"status": 500}, {"status": 503}, {"status": 504}, {"reset": True}, {"silent_s": 0.8}],
)
def test_what_passes_by_itself_is_tried_again(world: World, how: dict, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[type-arg]
    fault = world.server.fail(lambda r: r.action in (kmock.action.UPDATE, kmock.action.LIST), times=3, **how)
    world.launcher().submit(world.job()).wait()
    assert fault.times == 0 and "trying again" in capsys.readouterr().err
    assert len(world.server.objects("jobs")) == 1 and len(world.server.objects("services")) == 1


def test_pauses_grow_to_their_limit_and_differ_between_clients() -> None:
    pauses = [pause for _, pause in zip(range(12), Patience().pauses(), strict=False)]
    assert 0.5 <= pauses[0] <= 1 and all(15 <= pause <= 30 for pause in pauses[6:]) and len(set(pauses)) == 12


def test_a_watch_whose_history_is_gone_lists_again(world: World) -> None:
    world.otherwise = RUNS_ON
    handle = world.launcher().submit(world.job())
    thread, raised = waiting(handle)
    until(lambda: running(world))
    before = sum(map(lists, world.server.requests()))
    world.server.forget_history()
    until(lambda: sum(map(lists, world.server.requests())) >= before + 2)
    for index in (0, 1):
        world.server.do(world.kubelet._ended(world.kubelet._pod(index), 0))
    thread.join(10)
    assert not thread.is_alive() and raised == []


def test_a_log_that_is_cut_anywhere_loses_and_doubles_nothing(world: World) -> None:
    lines = tuple(f"line {number} " + "x" * (number % 7) for number in range(60))
    world.otherwise = Script(lines, pause_s=0.004)
    world.server.api.cut_logs_after = [1, 50, 333, 40, 700, 41, 1200]
    handle = world.launcher().submit(world.job(nodes=1))
    handle.wait()
    assert handle.logs().splitlines() == list(lines)
    assert world.server.api.cut_logs_after == []


def test_an_api_server_gone_for_a_minute_is_waited_for(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """A minute of :class:`Patience`'s defaults, at the scale of these tests; the job goes on meanwhile."""
    world.otherwise = Script(tuple(f"step {n}" for n in range(20)), pause_s=0.02)
    handle = world.launcher().submit(world.job())
    thread, raised = waiting(handle)
    until(lambda: running(world))
    with world.server.gone():
        time.sleep(60 / SCALE)
    thread.join(15)
    assert not thread.is_alive() and raised == []
    assert [line for line in handle.logs().splitlines() if line.startswith("rank 0")] == [f"rank 0: step {n}" for n in range(20)]


def test_an_api_server_gone_for_good_is_given_up_and_the_job_left_alone(world: World) -> None:
    world.otherwise = RUNS_ON
    handle = world.launcher(patience=Patience(first=0.02, longest=0.05, limit=0.3, connect=0.5, read=0.5, watch=1)).submit(
        world.job()
    )
    thread, raised = waiting(handle)
    until(lambda: running(world))
    with world.server.gone():
        thread.join(10)
        (error,) = raised
        assert "does not answer" in str(error) and "found again" in str(error)
    assert running(world)
    world.otherwise = Script()
    for index in (0, 1):
        world.server.do(world.kubelet._ended(world.kubelet._pod(index), 0))
    world.launcher().submit(world.job()).wait()
    assert len(world.kubelet.started) == 2


# ---- what befalls us


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_two_controllers_at_once_make_one_job_and_one_log(world: World, rendering: RenderingName) -> None:
    world.otherwise = Script(tuple(f"line {n}" for n in range(20)), pause_s=0.01)
    handles: list[KubernetesHandle] = []
    barrier = threading.Barrier(2)

    def control() -> None:
        launcher = world.launcher(rendering)
        barrier.wait()
        handles.append(launcher.submit(world.job()))
        handles[-1].wait()

    threads = [threading.Thread(target=control, daemon=True) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join(15) for thread in threads]
    assert len({handle.main["metadata"]["uid"] for handle in handles}) == 1 and len(world.kubelet.started) == 2
    for handle in handles:
        assert sorted(handle.logs().splitlines()) == sorted(f"rank {rank}: line {n}" for rank in (0, 1) for n in range(20))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_cancelled_during_its_start_it_leaves_nothing_and_touches_nothing_else(world: World, rendering: RenderingName) -> None:
    world.otherwise = RUNS_ON
    other = world.launcher(rendering).submit(world.job("another"))
    until(lambda: running(world))
    world.fates = [Stuck("ContainerCreating"), Stuck("ContainerCreating")]
    handle = world.launcher(rendering).submit(world.job())
    thread, raised = waiting(handle)
    until(lambda: len(world.server.objects("pods")) == 4)
    handle.cancel()
    thread.join(10)
    assert "removed by somebody else" in str(raised[0])
    left = {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in _ours(world)}
    assert left == {other.key} and running(world)
    assert other.status().state is JobState.running


def _ours(world: World) -> list[dict]:  # type: ignore[type-arg]
    return [thing for thing in world.server.api.store.objects.values() if "omnimri.dev/job" in thing["metadata"].get("labels", {})]


def test_cancelling_an_old_handle_does_not_touch_the_job_that_took_its_name(world: World) -> None:
    world.otherwise = RUNS_ON
    launcher = world.launcher()
    old = launcher.submit(world.job())
    old.cancel()
    new = launcher.submit(world.job())
    old.cancel()
    assert new.status().state in (JobState.running, JobState.starting, JobState.pending)


WAITING = """
import sys
from pathlib import Path
from components.launching import JobSpec, SharedVolume
from components.launching.cluster import Cluster
from components.launching.kubernetes import KubernetesLauncher
folder = Path(sys.argv[1])
job = JobSpec("a_stage", "some.module", ("argument",), processes=2, nodes=2, folder=folder / "a_stage", image="image",
              volumes=(SharedVolume("state", folder),))
KubernetesLauncher(Cluster.connect("omnimri"), "job").submit(job).wait()
"""


def test_a_process_that_is_killed_and_started_again_finds_its_job_and_goes_on_with_its_log(world: World) -> None:
    """A process of its own, ended by SIGKILL while it writes the log: nothing is said, nothing is cleaned up."""
    kubeconfig = _kubeconfig(world)
    world.otherwise = Script(tuple(f"line {n}" for n in range(400)), pause_s=0.01)
    log = world.folder / "a_stage" / "logs"
    first = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(world.folder)], cwd=REPOSITORY, env={**os.environ, "KUBECONFIG": str(kubeconfig)}
    )
    until(lambda: len(list(log.glob("*.log"))) == 2 and all("line 5\n" in path.read_text() for path in log.glob("*.log")), 60)
    first.kill()
    first.wait()
    kept = {path.name: path.read_text().count("\n") for path in log.glob("*.log")}
    second = world.launcher().submit(world.job())
    second.wait()
    assert len(world.kubelet.started) == 2 and all(0 < count < 400 for count in kept.values())
    lines = second.logs().splitlines()
    for rank in (0, 1):
        assert [line for line in lines if line.startswith(f"rank {rank}")] == [f"rank {rank}: line {n}" for n in range(400)]


def test_a_job_that_failed_before_is_started_again_under_its_name(world: World) -> None:
    world.otherwise = Script(exit_code=1)
    job = world.job(nodes=1, restarts=0)
    failed = world.launcher().submit(job)
    with pytest.raises(JobFailed):
        failed.wait()
    world.otherwise = Script()
    again = world.launcher().submit(job)
    again.wait()
    assert again.main["metadata"]["uid"] != failed.main["metadata"]["uid"] and again.key == failed.key


def test_ctrl_c_cancels(world: World) -> None:
    world.otherwise = RUNS_ON
    handle = world.launcher().submit(world.job())
    handle._tell = _interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        handle.wait()
    assert _ours(world) == []


def _interrupt(observation: object) -> None:
    raise KeyboardInterrupt


def test_suspended_by_kueue_it_waits_without_limit_and_says_for_what(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.controllers.admit = False
    handle = world.launcher().submit(world.job(queue="training", pending_limit_s=0.05))
    thread, raised = waiting(handle)
    until(lambda: "waits for quota in queue training" in capsys.readouterr().err)
    time.sleep(0.2)
    assert thread.is_alive() and world.server.objects("pods") == []
    (job,) = world.server.objects("jobs")
    job["spec"]["suspend"] = False
    world.server.put("jobs", job)
    thread.join(10)
    assert not thread.is_alive() and raised == []


def test_what_is_left_is_listed_and_cleaned_up(world: World) -> None:
    launcher = world.launcher("trainjob")
    launcher.submit(world.job("one")).wait()
    world.otherwise = RUNS_ON
    two = launcher.submit(world.job("two"))
    until(lambda: running(world))
    assert [(status.key, status.state, status.nodes) for status in launcher.jobs()] == [
        (world.job("one").key, JobState.succeeded, 2), (two.key, JobState.running, 2),
    ]  # fmt: skip
    assert launcher.clean_up() == [world.job("one").key]
    until(lambda: {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in _ours(world)} == {two.key})
    assert world.launcher().find(two.key).status().state is JobState.running


def test_logs_can_be_followed_from_elsewhere_through_an_eviction_and_read_again_after_the_end(world: World) -> None:
    world.otherwise = Script(("begun",), exit_code=None)
    key = world.launcher().submit(world.job()).key
    until(lambda: running(world))
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(world.launcher().find(key).stream()), daemon=True)
    thread.start()
    until(lambda: any(request.subresource == "log" for request in world.server.requests()))
    world.otherwise = Script(("went on",))
    world.kubelet.disrupt(1, "EvictionByEvictionAPI")
    until(lambda: len(world.kubelet.started) == 3)
    world.server.do(world.kubelet._ended(world.kubelet._pod(0), 0))
    thread.join(10)
    assert not thread.is_alive() and {"rank 0: begun", "rank 1: went on"} <= set(lines)
    assert list(world.launcher().find(key).stream(follow=False)).count("rank 0: begun") == 1


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_what_was_made_for_a_job_belongs_to_it(world: World, rendering: RenderingName) -> None:
    handle = world.launcher(rendering).submit(world.job())
    for thing in _ours(world):
        if thing["kind"] in ("Service", "TrainingRuntime"):
            (owner,) = thing["metadata"]["ownerReferences"]
            assert owner["uid"] == handle.main["metadata"]["uid"] and owner["kind"] == MAIN[rendering].kind
    assert all(thing["metadata"]["namespace"] == NAMESPACE for thing in _ours(world))


def test_the_best_rendering_is_found_by_what_the_server_serves() -> None:
    for crds, best in ((("jobset.x-k8s.io", "trainer.kubeflow.org"), "jobset"), (("trainer.kubeflow.org",), "job"), ((), "job")):
        with RunningServer(crds=crds) as server:
            assert KubernetesLauncher(Cluster(server.client(), NAMESPACE, QUICK)).rendering == best


def _kubeconfig(world: World) -> Path:
    """A kubeconfig of the world's server, with a token."""
    path = world.folder / "kubeconfig"
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    path.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "contexts": [context], "current-context": "here",
        "clusters": [{"name": "c", "cluster": {"server": world.server.url}}], "users": [{"name": "u", "user": {"token": "t0ken"}}],
    }))  # fmt: skip
    return path


def test_outside_of_a_cluster_the_kubeconfig_says_where(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(_kubeconfig(world)))
    for context_name in ("here", None):
        assert Cluster.connect(NAMESPACE, context_name, QUICK).renderings() == ["jobset", "job", "trainjob"]
    assert world.server.requests()[-1].headers["Authorization"] == "Bearer t0ken"
    with pytest.raises(JobFailed, match=r"no cluster is configured.*KUBECONFIG"):
        Cluster.connect(NAMESPACE, "elsewhere", QUICK)


def test_the_scale_of_these_tests() -> None:
    assert QUICK.limit * SCALE == Patience().limit and QUICK.watch * SCALE == Patience().watch
