"""Jobs as forks of a server: each is a main module with its own arguments, environment, log and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from components.launching.fork_server import ForkedProcess, ForkServers
from components.processes import Terminated
from components.provenance import REPOSITORY
from tests.helpers.fake_cluster import wait_until

HEAVY = """
import os, sys
print("chatter of a library")
print("more of it", file=sys.stderr)
IMPORTED_BY = os.getpid()
"""
JOB = """
import os, signal, sys, time
import heavy
if __name__ == "__main__":
    command, *words = sys.argv[1:]
    print(command, *words, os.environ["FLAVOR"], heavy.IMPORTED_BY, flush=True)
    if command == "exit":
        sys.exit(int(words[0]) if words[0].isdecimal() else words[0])
    if command == "raise":
        raise ValueError("a fault of the job")
    if command == "sleep":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        print("ready", flush=True)
        while True:
            time.sleep(0.01)
"""
Start = Callable[..., ForkedProcess]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heavy.py").write_text(HEAVY)
    (tmp_path / "a_job.py").write_text(JOB)
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Start:
    servers = ForkServers()

    def run(*arguments: str, log: str = "log", flavor: str = "plain") -> ForkedProcess:
        paths = os.pathsep.join([str(folder), str(REPOSITORY)])
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "FLAVOR": flavor}
        return servers.start("a_job", arguments, folder / log, environment, ["heavy", "no.such.module"])

    return run


def test_jobs_share_the_imports_of_one_server(start: Start, folder: Path) -> None:
    pids = []
    for word in ("0", "7", "0"):
        process = start("exit", word)
        assert process.wait(60) == int(word) == process.poll()
        pids.append(process.pid)
    lines = (folder / "log").read_text().splitlines()
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["exit 0 plain", "exit 7 plain", "exit 0 plain"]
    importers = {int(line.rsplit(" ", 1)[1]) for line in lines}
    assert len(importers) == 1 and len(set(pids)) == 3 and not importers & set(pids)


def test_another_environment_has_a_server_of_its_own(start: Start, folder: Path) -> None:
    assert start("exit", "0").wait(60) == start("exit", "0", flavor="other").wait(60) == 0
    first, second = (line.split() for line in (folder / "log").read_text().splitlines())
    assert (first[2], second[2]) == ("plain", "other") and first[3] != second[3]


def test_two_jobs_at_once_do_not_wait_for_each_other(start: Start, folder: Path) -> None:
    slow = start("sleep", log="slow")
    assert start("exit", "0").wait(60) == 0 and slow.poll() is None
    slow.kill()
    assert slow.wait(60) == -signal.SIGKILL


def test_an_exception_and_a_message_are_in_the_log(start: Start, folder: Path) -> None:
    assert start("raise").wait(60) == 1
    assert (folder / "log").read_text().rstrip().endswith("ValueError: a fault of the job")
    assert start("exit", "out of patience").wait(60) == 1
    assert "\nout of patience\n" in (folder / "log").read_text()


def test_a_request_to_stop_reaches_the_job(start: Start, folder: Path) -> None:
    process = start("sleep")
    wait_until(lambda: "ready" in _text(folder / "log"))
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


def test_a_request_to_the_whole_process_group_does_not_hide_how_the_job_ended(start: Start, folder: Path) -> None:
    process = start("sleep")
    wait_until(lambda: "ready" in _text(folder / "log"))
    server = psutil.Process(process.pid).parent()
    assert server is not None
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75


def test_without_the_server_the_job_stops_and_the_next_has_a_new_one(start: Start, folder: Path) -> None:
    process = start("sleep")
    wait_until(lambda: "ready" in _text(folder / "log"))
    server, job = psutil.Process(process.pid).parent(), psutil.Process(process.pid)
    assert server is not None
    server.kill()
    assert process.wait(60) != 0
    wait_until(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE)
    assert start("exit", "0").wait(60) == 0


def test_without_the_launcher_the_job_is_asked_to_stop(folder: Path) -> None:
    launcher = (
        "import sys, pathlib, time, os\n"
        "from components.launching.fork_server import ForkServers\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "environment = {**os.environ, 'FLAVOR': 'plain'}\n"
        "process = ForkServers().start('a_job', ['sleep'], folder / 'log', environment, ['heavy'])\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(REPOSITORY)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", launcher, str(folder)], env=environment, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert parent.stdout is not None
    job = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: "ready" in _text(folder / "log"))
    parent.kill()
    parent.wait()
    wait_until(lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE)


def test_a_job_that_is_given_up_while_the_server_imports_is_never_started(folder: Path) -> None:
    (folder / "slow_import.py").write_text("import time\ntime.sleep(1.5)\n")
    paths = os.pathsep.join([str(folder), str(REPOSITORY)])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths, "FLAVOR": "plain", "MARK": str(folder)}

    def give_up(number: int, frame: object) -> None:
        raise Terminated(signal.SIGTERM)

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(Terminated):
            ForkServers().start("a_job", ["sleep"], folder / "log", environment, ["slow_import"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    wait_until(lambda: not _marked(folder))
    assert not (folder / "log").exists()


def _marked(folder: Path) -> list[psutil.Process]:
    """Return the running processes whose environment names the folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("MARK") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
