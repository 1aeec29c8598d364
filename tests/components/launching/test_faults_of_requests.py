"""The fault table of docs/kubernetes.md, what befalls requests: what happens, and what the user is told."""

from __future__ import annotations

import time

import kmock
import pytest

from components.errors import JobFailed
from components.launching.kubernetes.api_client import Patience
from tests.components.launching.conftest import SCALE, World
from tests.doubles.kubelet import Script
from tests.helpers.cluster_faults import RUNS_ON, lists, ours, running, until, waiting


def test_forbidden_names_the_verb_the_path_and_the_remedy(world: World) -> None:
    world.server.fail(lambda r: r.action is kmock.action.UPDATE, status=403, message='User "x" cannot patch resource "jobs"')
    with pytest.raises(JobFailed, match=r"may not patch /apis/batch/v1/namespaces/omnimri/jobs/.*rbac\.yaml"):
        world.launcher().submit(world.job())


def test_a_job_whose_service_is_forbidden_is_not_left_half_made(world: World) -> None:
    services = kmock.resource("v1/services")
    world.server.fail(lambda r: r.action is kmock.action.UPDATE and r.resource == services, status=403, message="no")
    with pytest.raises(JobFailed, match="services"):
        world.launcher().submit(world.job())
    until(lambda: not ours(world))


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
