"""The same scenarios against the test doubles (default suite) and a real cluster (``make cluster-test``): one text holds both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.errors import JobFailed
from components.launching import JobState, Placement, SharedVolume
from components.launching.kubernetes import job_handle, launcher
from components.launching.kubernetes.manifests import WORKLOADS, RenderingName
from components.launching.probe import CAUSE
from tests.cluster import worlds
from tests.cluster.worlds import World, double_world, probe_job, real_world
from tests.helpers.fake_cluster import RENDERINGS, Waiter, wait_until
from tests.helpers.manifest_checks import NEWEST, schema_faults

WORLDS = {"double": double_world, "cluster": real_world}


@pytest.fixture(params=["double", pytest.param("cluster", marks=pytest.mark.cluster)])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(job_handle, "MISSING_PODS_S", 2.0 if request.param == "cluster" else 0.1)
    monkeypatch.setattr(job_handle, "LOOK_MARGIN_S", 0.02)
    monkeypatch.setattr(launcher, "ORPHAN_LIMIT_S", 2.0 if request.param == "cluster" else 0.1)
    with WORLDS[request.param](tmp_path) as world:
        yield world


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_job_succeeds_and_its_log_names_the_ranks(world: World, rendering: RenderingName) -> None:
    handle = world.launcher(rendering).submit(probe_job(world, "succeed", pending_limit_s=300.0))
    handle.wait()
    assert {"rank 0: probe: succeed", "rank 1: probe: succeed"} <= set(handle.logs().splitlines())
    assert handle.status().state is JobState.succeeded


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_the_exception_of_a_worker_is_what_the_user_sees_and_is_not_retried(world: World, rendering: RenderingName) -> None:
    job = probe_job(world, "fail", nodes=1, restarts=3, pending_limit_s=300.0)
    with pytest.raises(JobFailed, match=f"exited with status 1: .*ValueError: {CAUSE}"):
        world.launcher(rendering).submit(job).wait()
    assert len(world.pods(job.key)) == 1


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_crash_is_retried_as_often_as_permitted_in_one_pod(world: World, rendering: RenderingName) -> None:
    job = probe_job(world, "crash", nodes=1, restarts=2, pending_limit_s=300.0)
    handle = world.launcher(rendering).submit(job)
    with pytest.raises(JobFailed, match="ended by signal SIGKILL"):
        handle.wait()
    assert len(world.pods(job.key)) == 1 and handle.logs().count("probe: crash") == 3


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_wrong_configuration_is_not_retried(world: World, rendering: RenderingName) -> None:
    job = probe_job(world, "misconfigured", nodes=1, restarts=3, pending_limit_s=300.0)
    with pytest.raises(JobFailed, match="exited with status 2") as caught:
        world.launcher(rendering).submit(job).wait()
    assert "fix the settings" in caught.value.remedy and len(world.pods(job.key)) == 1


def test_an_evicted_pod_is_replaced_and_uses_no_restart(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    handle = world.launcher().submit(probe_job(world, "resume", restarts=0, pending_limit_s=300.0))
    waiter = Waiter(handle)
    wait_until(lambda: handle._last_reported.endswith("running") and handle.log.covers_all_nodes)
    world.evict(handle.key, 1)
    world.restart_peers()
    assert waiter.join() == [] and "rank 1: resumed" in handle.logs()
    assert "evicted (Eviction API: evicting); its replacement resumes" in capsys.readouterr().err


def test_one_of_two_pods_refused_by_a_quota_is_told_and_no_pod_stays(world: World) -> None:
    world.limit_pods(3)
    other = world.launcher().submit(probe_job(world, "wait", pending_limit_s=300.0))
    wait_until(lambda: other.status().state is JobState.running)
    job = probe_job(world, "resume")
    with pytest.raises(JobFailed, match=r"exceeded quota: .*requested: pods=1, used: pods=3, limited: pods=3"):
        world.launcher().submit(job).wait()
    assert world.pods(job.key) == [] and other.status().state is JobState.running


def test_a_request_above_the_quota_stops_at_once(world: World) -> None:
    world.limit_pods(1)
    with pytest.raises(JobFailed, match=r"2 nodes need 2 x 1 pods of 1, which is never free"):
        world.launcher().submit(probe_job(world, "wait", pending_limit_s=1e6)).wait()


def test_a_missing_claim_is_named_with_its_setting(world: World) -> None:
    world.claims("another")
    job = probe_job(world, "wait", pending_limit_s=1e6, volumes=(SharedVolume("missing", world.folder),))
    with pytest.raises(JobFailed, match=r'persistentvolumeclaim "missing" not found.*kubernetes\.volumes'):
        world.launcher().submit(job).wait()


def test_a_missing_secret_is_named_with_its_setting(world: World) -> None:
    world.secrets("another")
    job = probe_job(world, "wait", pending_limit_s=1e6, image_limit_s=2.0, secrets=("missing",))
    with pytest.raises(JobFailed, match=r'secret "missing" not found.*kubernetes\.secrets'):
        world.launcher().submit(job).wait()


def test_a_scheduler_that_does_not_run_is_told_and_no_pod_stays(world: World) -> None:
    job = probe_job(world, "wait", placement=Placement(scheduler="absent"))
    with pytest.raises(JobFailed, match=r"no scheduler has looked for a machine.*kubernetes\.scheduler"):
        world.launcher().submit(job).wait()
    assert world.pods(job.key) == []


def test_a_queue_on_a_cluster_without_kueue_is_refused(world: World) -> None:
    handle = world.launcher()
    if handle.cluster.serves(WORKLOADS):
        pytest.skip("this cluster has Kueue")
    with pytest.raises(JobFailed, match=r"no Kueue.*kubernetes\.queue=null"):
        handle.submit(probe_job(world, "wait", placement=Placement(queue="training")))


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_time_limit_is_reported_as_a_time_limit(world: World, rendering: RenderingName) -> None:
    job = probe_job(world, "wait", nodes=1, time_limit_s=world.time_limit_s, pending_limit_s=300.0)
    with pytest.raises(JobFailed, match="exceeded its time limit"):
        world.launcher(rendering).submit(job).wait()


@pytest.mark.parametrize("rendering", RENDERINGS)
def test_a_cancelled_job_leaves_nothing_and_other_jobs_run_on(world: World, rendering: RenderingName) -> None:
    other = world.launcher().submit(probe_job(world, "wait", pending_limit_s=300.0))
    handle = world.launcher(rendering).submit(probe_job(world, "resume", pending_limit_s=300.0))
    wait_until(lambda: handle.status().state is JobState.running and other.status().state is JobState.running)
    handle.cancel()
    assert world.pods(handle.key) == [] and handle.status().state is JobState.deleted
    assert other.status().state is JobState.running


@pytest.mark.parametrize(("rendering", "kind"), [("job", "pod"), ("jobset", "job"), ("trainjob", "jobset")])
def test_pods_that_outlived_their_job_are_not_joined_by_a_second_writer(world: World, rendering: RenderingName, kind: str) -> None:
    job = probe_job(world, "wait", pending_limit_s=300.0)
    handle = world.launcher(rendering).submit(job)
    wait_until(lambda: handle.status().state is JobState.running)
    world.orphan(job.key, rendering)
    with pytest.raises(JobFailed, match=rf"would write the same checkpoints.*kubectl --namespace \S+ delete {kind} "):
        world.launcher(rendering).submit(job)


def test_the_environment_names_storage_class_and_access_mode_of_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of several nodes needs ReadWriteMany, and not every cluster has a default class."""
    assert worlds.build_claim("state")["spec"]["accessModes"] == [worlds.ACCESS_MODE]
    monkeypatch.setattr(worlds, "STORAGE_CLASS", "nfs")
    monkeypatch.setattr(worlds, "ACCESS_MODE", "ReadWriteMany")
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **worlds.build_claim("state")}
    assert claim["spec"]["storageClassName"] == "nfs" and claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert [schema_faults(claim, version) for version in NEWEST] == [[], [], []]
