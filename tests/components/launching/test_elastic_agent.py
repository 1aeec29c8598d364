"""A node ends with the status of the worker that failed first, and its last line is that worker's exception."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.errors import JobFailed
from components.launching import JobSpec, LocalLauncher
from components.launching.elastic_agent import find_root_cause
from components.launching.job import program_lines
from components.launching.kubernetes import pod_entrypoint
from components.launching.worker_process import FailureRecord, describe_exception
from components.provenance import REPOSITORY

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


@pytest.mark.parametrize("processes", [1, 3, 8])
def test_the_exception_of_one_of_several_processes_is_what_the_user_sees(module: Path, processes: int, tmp_path: Path) -> None:
    module.write_text(WORKER.replace("FAILURE", VALUE_ERROR))
    job = JobSpec("a_stage", "failing_worker", (), processes=processes, folder=tmp_path / "job")
    with pytest.raises(JobFailed) as caught:
        LocalLauncher().submit(job).wait()
    assert caught.value.what.splitlines()[0] == "exited with status 1:"
    assert caught.value.what.splitlines()[-1] == "the loss is not a number"
    assert "ChildFailedError" not in str(caught.value)


@pytest.mark.parametrize(
    ("failure", "status", "starts", "last_line"),
    [
        ("sys.exit(2)", 2, 1, "rank 2: exited with status 2"),  # a wrong configuration: no restart, although one is permitted
        ("os.kill(os.getpid(), 9)", 137, 2, "rank 2: ended by signal SIGKILL"),
    ],
)
def test_a_pod_ends_with_the_status_of_its_worker(
    module: Path, failure: str, status: int, starts: int, last_line: str, tmp_path: Path
) -> None:
    module.write_text(WORKER.replace("FAILURE", failure))
    arguments = pod_entrypoint.build_arguments(["failing_worker"], 1, 3, "localhost:0", "a", 1, 10)
    completed = subprocess.run(
        [sys.executable, "-m", pod_entrypoint.__name__, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert completed.returncode == status, completed.stderr
    assert completed.stderr.splitlines()[-1] == last_line
    assert (tmp_path / "starts").read_text().split().count("2") == starts


def record(rank: int, time_s: float, cause: str, attempt: int = 0) -> FailureRecord:
    return FailureRecord(rank, attempt, 1, time_s, cause)


def test_the_first_failure_of_the_last_attempt_is_the_root_cause() -> None:
    records = [record(3, 1.0, "earlier attempt"), record(1, 5.1, "the loss", 1), record(0, 5.2, "connection closed", 1)]
    assert find_root_cause({0: 1, 1: 1}, records) == (1, 1, "the loss")


def test_a_worker_ended_by_a_signal_explains_the_lost_connections_of_the_others() -> None:
    assert find_root_cause({0: 1, 1: -15, 2: -9}, [record(0, 1.0, "connection closed")]) == (2, 137, "ended by signal SIGKILL")


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
