"""The fault table of docs/kubernetes.md, what befalls the flow that waits: what happens, and what the user is told."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from components.errors import JobFailed
from components.launching import JobState
from components.launching.kubernetes.api_client import Cluster, Patience
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import MAIN, RenderingName
from components.provenance import REPOSITORY
from tests.components.launching.conftest import QUICK, SCALE, World
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.kubelet import Script, Stuck
from tests.helpers.cluster_faults import RENDERINGS, RUNS_ON, ours, running, until, waiting


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
    left = {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in ours(world)}
    assert left == {other.key} and running(world)
    assert other.status().state is JobState.running


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
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.launcher import KubernetesLauncher
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
    assert ours(world) == []


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
        (world.job("one").key, JobState.succeeded, 2),
        (two.key, JobState.running, 2),
    ]
    assert launcher.clean_up() == [world.job("one").key]
    until(lambda: {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in ours(world)} == {two.key})
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
    for thing in ours(world):
        if thing["kind"] in ("Service", "TrainingRuntime"):
            (owner,) = thing["metadata"]["ownerReferences"]
            assert owner["uid"] == handle.main["metadata"]["uid"] and owner["kind"] == MAIN[rendering].kind
    assert all(thing["metadata"]["namespace"] == NAMESPACE for thing in ours(world))


def test_the_best_rendering_is_found_by_what_the_server_serves() -> None:
    for crds, best in ((("jobset.x-k8s.io", "trainer.kubeflow.org"), "jobset"), (("trainer.kubeflow.org",), "job"), ((), "job")):
        with RunningServer(crds=crds) as server:
            assert KubernetesLauncher(Cluster(server.client(), NAMESPACE, QUICK)).rendering == best


def _kubeconfig(world: World) -> Path:
    """A kubeconfig of the world's server, with a token."""
    path = world.folder / "kubeconfig"
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "contexts": [context],
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": world.server.url}}],
                "users": [{"name": "u", "user": {"token": "t0ken"}}],
            }
        )
    )
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
