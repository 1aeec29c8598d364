"""A node ends with the status of the worker that failed first, and its last line is that worker's exception."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from components.errors import BadInput, JobFailed, MachineFault
from components.launching import JobSpec, LocalLauncher, elastic_agent
from components.launching.elastic_agent import RestartPolicy, find_root_cause
from components.launching.job import program_lines
from components.launching.kubernetes import pod_entrypoint
from components.launching.worker_process import FailureRecord, Fault, classify_exception, describe_exception
from components.provenance import REPOSITORY
from tests.helpers.fake_cluster import wait_until
from tests.helpers.ports import free_port

WORKER = """
import os, sys, time
from pathlib import Path
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
with (Path(__file__).parent / "starts").open("a") as starts:
    starts.write(str(rank) + " ")
if rank == world - 1:
    FAILURE
time.sleep(600)
"""
VALUE_ERROR = 'raise ValueError("first line\\nthe loss is not a number")'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), str(tmp_path)]))
    return tmp_path / "failing_worker.py"


@pytest.mark.parametrize("processes", [1, 3, pytest.param(8, marks=pytest.mark.slow)])  # 8 interpreters on two cores: 15 s
def test_the_exception_of_one_of_several_processes_is_what_the_user_sees(
    module: Path, processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    module.write_text(WORKER.replace("FAILURE", VALUE_ERROR))
    job = JobSpec("a_stage", "failing_worker", (), processes=processes, folder=tmp_path / "job")
    with pytest.raises(JobFailed) as caught:
        LocalLauncher().submit(job).wait()
    assert caught.value.what.splitlines()[0] == "exited with status 1:"
    assert caught.value.what.splitlines()[-1] == "the loss is not a number"
    assert "ChildFailedError" not in str(caught.value)
    assert not list(scratch.iterdir()), "the agent leaves nothing in the folder of temporary files"


FAULTS = {
    "wrong setting": ("sys.exit(2)", 2, 1, "rank 2: exited with status 2"),
    "exception": (VALUE_ERROR, 1, 1, "the loss is not a number"),
    "crash": ("os.kill(os.getpid(), 9)", 1, 2, "rank 2: ended by signal SIGKILL"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_pod_restarts_its_processes_only_after_a_fault_of_the_machine(module: Path, fault: str, tmp_path: Path) -> None:
    """One restart is permitted; an exception or a wrong setting would occur again."""
    failure, status, starts, last_line = FAULTS[fault]
    module.write_text(WORKER.replace("FAILURE", failure))
    completed = run_pod(tmp_path, restarts=1)
    assert completed.returncode == status, completed.stderr
    assert completed.stderr.splitlines()[-1] == last_line and "RuntimeWarning" not in completed.stderr
    assert (tmp_path / "starts").read_text().split().count("2") == starts


def test_all_pods_of_a_submission_share_one_number_of_restarts(module: Path, tmp_path: Path) -> None:
    """Restarts in place do not multiply with pods that are replaced: the second pod finds none left."""
    module.write_text(WORKER.replace("rank == world - 1", "True").replace("FAILURE", "os.kill(os.getpid(), 9)"))
    for starts in (2, 3):
        assert run_pod(tmp_path, restarts=1, processes=1, submission="uid").returncode == 1
        assert len((tmp_path / "starts").read_text().split()) == starts
    (used,) = (tmp_path / "restarts" / "uid").iterdir()
    assert used.read_text() == "0\nended by signal SIGKILL\n"


def run_pod(folder: Path, restarts: int, processes: int = 3, submission: str = "") -> subprocess.CompletedProcess[str]:
    """Run a pod of a job with one node to its end."""
    arguments = pod_entrypoint.build_arguments(["failing_worker"], 1, processes, "localhost:0", "a", restarts, 10, folder)
    return subprocess.run(
        [sys.executable, "-m", pod_entrypoint.__name__, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, pod_entrypoint.JOB_UID: submission},
    )


SPARE = """
import os, time
from pathlib import Path
folder = Path(__file__).parent
(folder / f"pid-{os.getpid()}").write_text(os.environ["WORLD_SIZE"])
while not (folder / "finish").exists():
    time.sleep(0.1)
"""


@pytest.mark.slow
def test_a_spare_node_takes_over_for_a_lost_one(module: Path, tmp_path: Path) -> None:
    """Three pods with a process each, two of which are needed; slow: torchrun notices a lost node after 15 s."""
    module.write_text(SPARE)
    port = free_port()
    pods = [start_pod(tmp_path, index, port) for index in range(3)]
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
    workers = {int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")}
    lost = next(pod for pod in pods[1:] if workers & {child.pid for child in psutil.Process(pod.pid).children()})
    os.killpg(lost.pid, signal.SIGKILL)
    wait_until(lambda: len(list(tmp_path.glob("pid-*"))) >= 4)
    (tmp_path / "finish").touch()
    assert [pod.wait() for pod in pods if pod is not lost] == [0, 0]


COLLECTIVE = """
import os, torch
torch.distributed.init_process_group("gloo")
if os.environ["RANK"] == "1":
    raise ValueError("the loss")
torch.distributed.barrier()
"""


@pytest.mark.slow
def test_the_pods_of_other_nodes_do_not_hide_the_exception_of_one(module: Path, tmp_path: Path) -> None:
    """Real torchrun on two nodes: one pod ends the job, the other one says that it only lost a peer. Slow: ten seconds."""
    module.write_text(COLLECTIVE)
    port = free_port()
    pods = [start_pod(tmp_path, index, port) for index in range(2)]
    assert sorted(pod.wait() for pod in pods) in ([1, pod_entrypoint.PEER_LOST], [1, -signal.SIGTERM])


def start_pod(folder: Path, index: int, port: int) -> subprocess.Popen[bytes]:
    arguments = pod_entrypoint.build_arguments(["failing_worker"], 2, 1, f"localhost:{port}", "a", 1, 10, folder)
    environment = {**os.environ, pod_entrypoint.JOB_UID: "uid", "JOB_COMPLETION_INDEX": str(index), "POD_IP": "127.0.0.1"}
    command = [sys.executable, "-m", pod_entrypoint.__name__, *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True)


def record(rank: int, time_s: float, cause: str, fault: Fault = Fault.program) -> FailureRecord:
    return FailureRecord(rank, 1, time_s, cause, fault)


def test_the_first_failure_that_no_peer_caused_is_the_root_cause() -> None:
    records = [record(0, 5.1, "connection closed", Fault.peer), record(1, 5.2, "the loss"), record(2, 5.3, "another")]
    assert find_root_cause({0: 1, 1: 1, 2: 1}, records) == records[1]


def test_a_worker_ended_by_a_signal_explains_the_lost_connections_of_the_others() -> None:
    cause = find_root_cause({0: 1, 1: -15, 2: -9}, [record(0, 1.0, "connection closed", Fault.peer)])
    assert (cause.rank, cause.status, cause.cause, cause.fault) == (2, 137, "ended by signal SIGKILL", Fault.machine)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (ValueError("the loss"), Fault.program),
        (BadInput("no such stage"), Fault.configuration),
        (JobFailed("no checkpoint can be read"), Fault.program),
        (MachineFault("the disk is full"), Fault.machine),
        (RuntimeError("[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.2]:5000"), Fault.peer),
        (RuntimeError("NCCL communicator was aborted on rank 1"), Fault.peer),
        (torch.distributed.DistStoreError("wait timeout after 300000ms, keys: /worker/1"), Fault.peer),
        (torch.distributed.DistNetworkError("failed to recv, got 0 bytes"), Fault.peer),
        (RuntimeError("Rank 1 failed to pass monitoredBarrier in 1800000 ms"), Fault.peer),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Fault.peer),
        (RuntimeError("DataLoader worker (pid(s) 812) exited unexpectedly"), Fault.machine),
        (RuntimeError("DataLoader worker (pid 812) is killed by signal: Bus error."), Fault.machine),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), Fault.machine),
        (RuntimeError("CUDA error: device-side assert triggered"), Fault.program),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), Fault.program),
        (OSError(errno.ETIMEDOUT, "Connection timed out", "/state/corpus"), Fault.machine),
        (OSError(errno.ESTALE, "Stale file handle", "/state/corpus"), Fault.machine),
        (FileNotFoundError(errno.ENOENT, "No such file", "/state/corpus"), Fault.program),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), Fault.peer),
    ],
)
def test_an_exception_tells_whose_fault_it_is(error: Exception, fault: Fault) -> None:
    assert classify_exception(error) is fault


def test_lost_peers_and_stops_are_not_counted_unless_nothing_runs_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = RestartPolicy(limit=0, nodes=2)
    lost, stopped = record(0, 1.0, "connection closed", Fault.peer), record(0, 1.0, "", Fault.stopped)
    assert all(policy.permits_restart(failure) for failure in [lost, stopped] * 9)
    assert [policy.permits_restart(lost) for _ in range(3)] == [True, False, False]  # the network itself is broken
    monkeypatch.setattr(elastic_agent, "SHORT_ATTEMPT_S", 0.0)
    assert policy.permits_restart(lost)
    assert not RestartPolicy(limit=0, nodes=1).permits_restart(lost)  # a peer on the same node


def test_nodes_that_fail_together_use_one_restart(tmp_path: Path) -> None:
    """As when the storage that they share fails; two nodes that fail at different times use two."""
    nodes = [RestartPolicy(limit=2, nodes=4, node=index, ledger=tmp_path / "uid") for index in range(4)]
    stale = record(0, 1.0, "OSError: Stale file handle", Fault.machine)
    for permitted, used in ((True, 1), (True, 2), (False, 2)):
        assert [node.permits_restart(stale) for node in nodes] == [permitted] * 4
        assert len(list((tmp_path / "uid").iterdir())) == used


def test_nodes_that_fail_at_different_times_share_the_restarts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_agent, "SAME_EVENT_S", 0.0)
    first, second = (RestartPolicy(limit=2, nodes=2, node=index, ledger=tmp_path / "uid") for index in range(2))
    crash = record(0, 1.0, "ended by signal SIGSEGV", Fault.machine)
    assert [node.permits_restart(crash) for node in (first, second, first, second)] == [True, True, False, False]


def test_an_abort_by_the_watchdog_of_nccl_is_a_lost_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves no exception, and comes minutes after a machine has lost its power; a crash at the start is a crash."""
    abort = FailureRecord(0, 134, 1.0, "ended by signal SIGABRT", Fault.machine)
    assert not RestartPolicy(limit=0, nodes=2).permits_restart(abort)
    monkeypatch.setattr(elastic_agent, "WATCHDOG_S", 0.0)
    assert RestartPolicy(limit=0, nodes=2).permits_restart(abort) and not RestartPolicy(limit=0).permits_restart(abort)


def test_a_pod_that_starts_after_the_others_have_finished_ends_as_well(tmp_path: Path) -> None:
    policy = RestartPolicy(limit=0, ledger=tmp_path / "uid", attempt="first")
    assert policy.finished_elsewhere() is None
    policy.mark_finished(has_first_rank=False)
    assert policy.finished_elsewhere() is False  # a result is missing
    restarted = RestartPolicy(limit=0, ledger=tmp_path / "uid", attempt="second")  # all pods, by the JobSet
    assert restarted.finished_elsewhere() is None
    policy.mark_finished(has_first_rank=True)
    assert restarted.finished_elsewhere() is True
    assert policy.finished_elsewhere() is True


def test_a_user_facing_error_is_described_without_its_class() -> None:
    error = JobFailed("no checkpoint can be read", where="folder", remedy="delete it")
    assert describe_exception(error) == "folder: no checkpoint can be read (delete it)"
    assert describe_exception(ValueError("the loss")) == "ValueError: the loss"


def test_messages_of_the_agent_are_no_lines_of_the_program() -> None:
    agent = (
        "W1128 15:00:00.123000 12 torch/distributed/elastic/multiprocessing/api.py:1029] Sending process 13 closing signal SIGTERM"
    )
    path = "E1128 15:00:00.123000 12 /venv/torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)"
    assert program_lines([agent, "step 1", path, f"rank 0: {agent}", "ValueError"]) == ["step 1", "ValueError"]
