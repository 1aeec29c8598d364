"""The failure table of docs/kubernetes.md, failures of requests: reaction, and message to the user."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import kmock
import pytest

from components.errors import JobFailed
from components.launching.kubernetes.api_client import RetryPolicy
from tests.doubles.kubelet import ScriptedPod
from tests.helpers.fake_cluster import FAST_RETRY, RUNS_FOREVER, FakeCluster, Waiter, wait_until


def test_forbidden_names_the_verb_the_path_and_the_remedy(cluster: FakeCluster) -> None:
    cluster.server.inject_fault(
        lambda r: r.action is kmock.action.UPDATE, status=403, message='User "x" cannot patch resource "jobs"'
    )
    with pytest.raises(JobFailed, match=r"not allowed to patch /apis/batch/v1/namespaces/omnimri/jobs/.*rbac\.yaml"):
        cluster.launcher().submit(cluster.job())


def test_a_job_whose_service_is_forbidden_is_deleted(cluster: FakeCluster) -> None:
    services = kmock.resource("v1/services")
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE and r.resource == services, status=403, message="no")
    with pytest.raises(JobFailed, match="services"):
        cluster.launcher().submit(cluster.job())
    wait_until(lambda: not cluster.objects())


def test_expired_credentials_are_reported_at_once(cluster: FakeCluster) -> None:
    cluster.server.inject_fault(lambda r: r.action is kmock.action.FETCH, status=401)
    with pytest.raises(JobFailed, match=r"rejects the credentials.*log in again"):
        cluster.launcher().submit(cluster.job())


def test_an_exceeded_quota_is_not_reported_as_a_missing_permission(cluster: FakeCluster) -> None:
    cluster.server.inject_fault(
        lambda r: r.action is kmock.action.UPDATE,
        status=403,
        message='jobs "x" is forbidden: exceeded quota: omnimri, requested: pods=2, used: pods=9, limited: pods=9',
    )
    with pytest.raises(JobFailed, match=r"^quota: .*exceeded quota.*lower kubernetes\.nodes"):
        cluster.launcher().submit(cluster.job())


def test_a_conflict_with_another_submitter_yields_the_same_job(cluster: FakeCluster) -> None:
    """Both submitters find no job and apply one; the second gets a conflict and attaches to the first one's job."""
    other = cluster.launcher().submit(cluster.job())
    cluster.server.inject_fault(lambda r: r.action is kmock.action.FETCH, status=404, message="not yet")
    cluster.server.inject_fault(lambda r: r.action is kmock.action.UPDATE, status=409, message="the object has been modified")
    handle = cluster.launcher().submit(cluster.job())
    assert handle.main["metadata"]["uid"] == other.main["metadata"]["uid"]
    handle.wait()


def test_an_object_of_another_owner_with_the_same_name_is_not_changed(cluster: FakeCluster) -> None:
    other_job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": cluster.job().key},
        "spec": {"completions": 0, "suspend": True},
    }
    cluster.server.put("jobs", {**other_job, "metadata": {**other_job["metadata"], "labels": {}}})
    with pytest.raises(JobFailed, match="OmniMRI did not create"):
        cluster.launcher().submit(cluster.job())
    assert len(cluster.server.objects("jobs")) == 1


@pytest.mark.parametrize(
    "fault_fields",
    [{"status": 429, "retry_after": "0"}, {"status": 500}, {"status": 503}, {"status": 504}, {"reset": True}, {"delay_s": 0.6}],
)
def test_transient_failures_are_retried(
    cluster: FakeCluster, fault_fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    fault = cluster.server.inject_fault(lambda r: r.action in (kmock.action.UPDATE, kmock.action.LIST), times=3, **fault_fields)
    cluster.launcher(retry=replace(FAST_RETRY, read_timeout_s=0.3)).submit(cluster.job()).wait()
    assert fault.times == 0 and "retrying" in capsys.readouterr().err
    assert len(cluster.server.objects("jobs")) == 1 and len(cluster.server.objects("services")) == 1


def test_times_are_compared_with_the_clock_of_the_server(cluster: FakeCluster) -> None:
    """A laptop whose clock is an hour ahead would call every machine unreachable that stops a pod."""
    client = cluster.launcher().cluster
    assert abs((client.now() - datetime.now(UTC)).total_seconds()) < 5
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    client._record_date(hour_ago.strftime("%a, %d %b %Y %H:%M:%S GMT"))
    client._record_date("no date")
    assert abs((client.now() - hour_ago).total_seconds()) < 5


def test_pauses_grow_to_their_maximum_and_differ_between_clients() -> None:
    pauses = [pause for _, pause in zip(range(12), RetryPolicy().pauses(), strict=False)]
    assert 0.5 <= pauses[0] <= 1 and all(15 <= pause <= 30 for pause in pauses[6:]) and len(set(pauses)) == 12


def test_a_watch_whose_history_expired_lists_again(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    handle = cluster.launcher().submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(cluster.is_running)
    lists_before = count_lists(cluster)
    cluster.server.expire_history()
    wait_until(lambda: count_lists(cluster) >= lists_before + 2)
    for index in (0, 1):
        cluster.kubelet.finish(index)
    assert waiter.join() == []


def count_lists(cluster: FakeCluster) -> int:
    return sum(request.action is kmock.action.LIST for request in cluster.server.requests())


def test_a_log_stream_that_breaks_anywhere_loses_and_repeats_no_line(cluster: FakeCluster) -> None:
    lines = tuple(f"line {number} " + "x" * (number % 7) for number in range(60))
    cluster.default_behavior = ScriptedPod(lines, pause_s=0.004)
    cluster.server.api.cut_logs_after = [1, 50, 333, 40, 700, 41, 1200]
    handle = cluster.launcher().submit(cluster.job(nodes=1))
    handle.wait()
    assert handle.logs().splitlines() == list(lines)
    assert cluster.server.api.cut_logs_after == []


def test_an_unreachable_api_server_is_waited_for(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job continues meanwhile."""
    cluster.default_behavior = ScriptedPod(tuple(f"step {n}" for n in range(20)), pause_s=0.02)
    launcher = cluster.launcher()
    handle = launcher.submit(cluster.job())
    waiter = Waiter(handle)
    wait_until(cluster.is_running)
    faults: list[str] = []
    describe = launcher.cluster.describe_transient

    def record(error: Exception, verb: str, path: str) -> str:
        faults.append(describe(error, verb, path))
        return faults[-1]

    monkeypatch.setattr(launcher.cluster, "describe_transient", record)
    with cluster.server.unreachable():
        wait_until(lambda: len(faults) >= 4)
    assert waiter.join() == []
    assert [line for line in handle.logs().splitlines() if line.startswith("rank 0")] == [f"rank 0: step {n}" for n in range(20)]


def test_an_api_server_that_stays_unreachable_is_given_up_and_the_job_keeps_running(cluster: FakeCluster) -> None:
    cluster.default_behavior = RUNS_FOREVER
    waiter = Waiter(cluster.launcher(retry=replace(FAST_RETRY, give_up_s=0.3)).submit(cluster.job()))
    wait_until(cluster.is_running)
    with cluster.server.unreachable():
        (error,) = waiter.join()
        assert "does not respond" in str(error) and "found by the next run" in str(error)
    assert cluster.is_running()
    cluster.default_behavior = ScriptedPod()
    for index in (0, 1):
        cluster.kubelet.finish(index)
    cluster.launcher().submit(cluster.job()).wait()
    assert len(cluster.kubelet.started) == 2
