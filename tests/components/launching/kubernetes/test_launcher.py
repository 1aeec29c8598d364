"""The failure table of docs/kubernetes.md, failures of the submitting process: reaction, and message to the user."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from components.errors import JobFailed
from components.launching import JobState
from components.launching.kubernetes.api_client import Cluster
from components.launching.kubernetes.job_handle import KubernetesHandle
from components.launching.kubernetes.launcher import KubernetesLauncher
from components.launching.kubernetes.manifests import JOBS, MAIN_RESOURCES, RenderingName
from components.provenance import REPOSITORY
from tests.doubles.apiserver import NAMESPACE, RunningServer
from tests.doubles.controllers import Controllers
from tests.doubles.kubelet import BlockedPod, Kubelet, ScriptedPod
from tests.helpers.fake_cluster import EVENT_TIMEOUT_S, FAST_RETRY, RENDERINGS, RUNS_FOREVER, FakeCluster, Waiter, wait_until


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_two_concurrent_submitters_share_one_job_and_one_log(cluster: FakeCluster, rendering: RenderingName) -> None:
    cluster.default_behavior = ScriptedPod(tuple(f"line {n}" for n in range(20)), pause_s=0.01)
    handles: list[KubernetesHandle] = []
    barrier = threading.Barrier(2)

    def submit_and_wait() -> None:
        launcher = cluster.launcher(rendering)
        barrier.wait()
        handles.append(launcher.submit(cluster.job()))
        handles[-1].wait()

    threads = [threading.Thread(target=submit_and_wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({handle.main["metadata"]["uid"] for handle in handles}) == 1 and len(cluster.kubelet.started) == 2
    for handle in handles:
        assert sorted(handle.logs().splitlines()) == sorted(f"rank {rank}: line {n}" for rank in (0, 1) for n in range(20))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_job_cancelled_during_its_start_is_deleted_and_other_jobs_are_not_affected(
    cluster: FakeCluster, rendering: RenderingName
) -> None:
    cluster.default_behavior = RUNS_FOREVER
    other = cluster.launcher(rendering).submit(cluster.job("another"))
    wait_until(cluster.is_running)
    cluster.next_behaviors = [BlockedPod("ContainerCreating"), BlockedPod("ContainerCreating")]
    handle = cluster.launcher(rendering).submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(lambda: len(cluster.server.objects("pods")) == 4)
    handle.cancel()
    (error,) = waiter.join()
    assert "was deleted by another process or user" in str(error)
    remaining = {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in cluster.objects()}
    assert remaining == {other.key} and cluster.is_running()
    assert other.status().state is JobState.running


def test_cancelling_an_old_handle_does_not_affect_a_newer_job_of_the_same_name(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    launcher = cluster.launcher()
    old = launcher.submit(cluster.job())
    old.cancel()
    new = launcher.submit(cluster.job())
    old.cancel()
    assert new.status().state in (JobState.running, JobState.starting, JobState.pending)


SUBMIT_AND_WAIT = """
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


def test_a_killed_and_restarted_process_finds_its_job_and_continues_its_log(cluster: FakeCluster) -> None:
    """A separate process is ended by SIGKILL while it writes the log, so that it can neither report nor clean up."""
    kubeconfig = _write_kubeconfig(cluster)
    cluster.default_behavior = ScriptedPod(tuple(f"line {n}" for n in range(400)), pause_s=0.01)
    log = cluster.folder / "a_stage" / "logs"
    first = subprocess.Popen(
        [sys.executable, "-c", SUBMIT_AND_WAIT, str(cluster.folder)],
        cwd=REPOSITORY,
        env={**os.environ, "KUBECONFIG": str(kubeconfig)},
    )
    wait_until(lambda: len(list(log.glob("*.log"))) == 2 and all("line 5\n" in path.read_text() for path in log.glob("*.log")))
    first.kill()
    first.wait()
    line_counts = {path.name: path.read_text().count("\n") for path in log.glob("*.log")}
    second = cluster.launcher().submit(cluster.job())
    second.wait()
    assert len(cluster.kubelet.started) == 2 and all(0 < count < 400 for count in line_counts.values())
    lines = second.logs().splitlines()
    for rank in (0, 1):
        assert [line for line in lines if line.startswith(f"rank {rank}")] == [f"rank {rank}: line {n}" for n in range(400)]


def test_a_failed_job_is_started_again_under_its_name(cluster: FakeCluster) -> None:
    cluster.default_behavior = ScriptedPod(exit_code=1)
    job = cluster.job(nodes=1, restarts=0)
    failed = cluster.launcher().submit(job)
    with pytest.raises(JobFailed):
        failed.wait()
    cluster.default_behavior = ScriptedPod()
    again = cluster.launcher().submit(job)
    again.wait()
    assert again.main["metadata"]["uid"] != failed.main["metadata"]["uid"] and again.key == failed.key


def test_finished_jobs_are_listed_and_cleaned_up(cluster: FakeCluster) -> None:
    launcher = cluster.launcher("trainjob")
    launcher.submit(cluster.job("one")).wait()
    cluster.default_behavior = RUNS_FOREVER
    two = launcher.submit(cluster.job("two"))
    wait_until(cluster.is_running)
    assert [(status.key, status.state, status.nodes) for status in launcher.jobs()] == [
        (cluster.job("one").key, JobState.succeeded, 2),
        (two.key, JobState.running, 2),
    ]
    assert launcher.clean_up() == [cluster.job("one").key]
    wait_until(lambda: {thing["metadata"]["labels"]["omnimri.dev/job"] for thing in cluster.objects()} == {two.key})
    assert cluster.launcher().find(two.key).status().state is JobState.running


def test_the_prerequisites_of_a_job_that_another_process_is_about_to_create_stay(cluster: FakeCluster) -> None:
    labels = {"app.kubernetes.io/managed-by": "omnimri", "omnimri.dev/job": "new"}
    for name, fields in (("new", {}), ("lost", {"creationTimestamp": "2026-01-01T00:00:00Z"})):
        cluster.server.put("trainingruntimes", {"kind": "TrainingRuntime", "metadata": {"name": name, "labels": labels, **fields}})
    assert cluster.launcher(retry=replace(FAST_RETRY, give_up_s=900.0)).clean_up() == ["lost"]


def test_logs_can_be_followed_from_another_process_through_an_eviction_and_read_again_after_the_end(cluster: FakeCluster) -> None:
    cluster.default_behavior = ScriptedPod(("started",), exit_code=None)
    key = cluster.launcher().submit(cluster.job()).key
    wait_until(cluster.is_running)
    lines: list[str] = []
    thread = threading.Thread(target=lambda: lines.extend(cluster.launcher().find(key).stream()), daemon=True)
    thread.start()
    wait_until(lambda: any(request.subresource == "log" for request in cluster.server.requests()))
    cluster.default_behavior = ScriptedPod(("resumed",))
    cluster.kubelet.disrupt(1, "EvictionByEvictionAPI")
    wait_until(lambda: len(cluster.kubelet.started) == 3)
    cluster.kubelet.finish(0)
    thread.join(EVENT_TIMEOUT_S)
    assert {"rank 0: started", "rank 1: resumed"} <= set(lines)
    assert list(cluster.launcher().find(key).stream(follow=False)).count("rank 0: started") == 1


def test_a_followed_log_has_the_lines_of_pods_that_are_seen_after_the_end_of_their_job(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watches of jobs and of pods are independent: that of pods is behind all the time here."""
    cluster.default_behavior = ScriptedPod(("quick",))
    handle = cluster.launcher().find(cluster.launcher().submit(cluster.job()).key)
    monkeypatch.setattr(handle, "_cached_pods", list)
    assert {"rank 0: quick", "rank 1: quick"} <= set(handle.stream())


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_job_owns_its_auxiliary_objects(cluster: FakeCluster, rendering: RenderingName) -> None:
    handle = cluster.launcher(rendering).submit(cluster.job())
    for thing in cluster.objects():
        if thing["kind"] in ("Service", "TrainingRuntime"):
            (owner,) = thing["metadata"]["ownerReferences"]
            assert owner["uid"] == handle.main["metadata"]["uid"] and owner["kind"] == MAIN_RESOURCES[rendering].kind
    assert all(thing["metadata"]["namespace"] == NAMESPACE for thing in cluster.objects())


def test_the_preferred_rendering_follows_from_the_served_api_groups() -> None:
    for crds, best in ((("jobset.x-k8s.io", "trainer.kubeflow.org"), "jobset"), (("trainer.kubeflow.org",), "job"), ((), "job")):
        with RunningServer(crds=crds) as server:
            assert KubernetesLauncher(Cluster(server.client(), NAMESPACE, FAST_RETRY)).rendering == best


@pytest.mark.parametrize("before", RENDERINGS)
@pytest.mark.parametrize("now", RENDERINGS)
def test_a_job_of_another_rendering_is_found_and_waited_for(
    cluster: FakeCluster, before: RenderingName, now: RenderingName
) -> None:
    """JobSets were installed while an Indexed Job ran: a second submission must neither start again nor blame the live pods."""
    cluster.default_behavior = RUNS_FOREVER
    first = cluster.launcher(before).submit(cluster.job())
    wait_until(cluster.is_running)
    second = cluster.launcher(now).submit(cluster.job())
    assert second.main["metadata"]["uid"] == first.main["metadata"]["uid"]
    waiter = Waiter(second)
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == [] and second.status().state is JobState.succeeded and len(cluster.kubelet.started) == 2


def test_a_failed_job_of_another_rendering_is_started_again_in_the_present_one(cluster: FakeCluster) -> None:
    cluster.default_behavior = ScriptedPod(exit_code=1)
    with pytest.raises(JobFailed):
        cluster.launcher("job").submit(cluster.job(nodes=1, restarts=0)).wait()
    cluster.default_behavior = ScriptedPod()
    again = cluster.launcher("jobset").submit(cluster.job(nodes=1, restarts=0))
    again.wait()
    assert again.main["kind"] == "JobSet"
    assert [job["metadata"]["name"] for job in cluster.server.objects("jobs")] == [f"{again.key}-node-0"]


def test_an_account_that_may_use_only_jobs_can_submit_them(cluster: FakeCluster) -> None:
    """The cluster serves JobSets, but the role was reduced to the rendering in use."""
    cluster.server.api.grants = frozenset(grant for grant in cluster.server.api.grants if grant[0] in ("", "batch"))
    cluster.launcher("job").submit(cluster.job()).wait()


@pytest.mark.parametrize(("group", "rendering"), [("jobset.x-k8s.io", "jobset"), ("trainer.kubeflow.org", "trainjob")])
def test_a_group_that_is_served_only_in_another_version_is_not_used(tmp_path: Path, group: str, rendering: RenderingName) -> None:
    with RunningServer(newer=(group, "v1")) as server, Controllers(server) as controllers, Kubelet(server) as kubelet:
        cluster = FakeCluster(server, controllers, kubelet, tmp_path)
        automatic = KubernetesLauncher(Cluster(server.client(), NAMESPACE, FAST_RETRY))
        assert automatic.jobs() == [] and automatic.clean_up() == [] and automatic.rendering != rendering
        with pytest.raises(JobFailed, match=rf"rendering={rendering}: the cluster serves no .*{group}/v1alpha.*rendering=auto"):
            cluster.launcher(rendering).submit(cluster.job())


def _write_kubeconfig(cluster: FakeCluster) -> Path:
    """Write a kubeconfig for the cluster's server, with a token."""
    path = cluster.folder / "kubeconfig"
    context = {"name": "here", "context": {"cluster": "c", "user": "u"}}
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "contexts": [context],
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": {"server": cluster.server.url}}],
                "users": [{"name": "u", "user": {"token": "t0ken"}}],
            }
        )
    )
    return path


def test_the_kubeconfig_is_used_outside_of_a_cluster(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(_write_kubeconfig(cluster)))
    for context_name in ("here", None):
        assert Cluster.connect(NAMESPACE, context_name, FAST_RETRY).supported_renderings() == ["jobset", "job", "trainjob"]
    assert cluster.server.requests()[-1].headers["Authorization"] == "Bearer t0ken"
    with pytest.raises(JobFailed, match=r"no cluster is configured.*KUBECONFIG"):
        Cluster.connect(NAMESPACE, "elsewhere", FAST_RETRY)


def test_a_renewed_token_file_of_the_kubeconfig_is_used(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    path, token = _write_kubeconfig(cluster), cluster.folder / "token"
    kubeconfig = yaml.safe_load(path.read_text())
    kubeconfig["users"][0]["user"] = {"tokenFile": "token"}
    path.write_text(yaml.safe_dump(kubeconfig))
    token.write_text("first")
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    connected = Cluster.connect(NAMESPACE, None, FAST_RETRY)
    for expected in ("first", "second"):
        token.write_text(expected + "\n")
        connected.get(JOBS, "any")
        assert cluster.server.requests()[-1].headers["Authorization"] == f"Bearer {expected}"
