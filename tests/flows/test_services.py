"""Children are started again when they die, and end with all that they started."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from components.errors import BadInput
from components.files import write_json
from components.home import Home
from flows.environment import settle
from flows.server.supervisor import SERVICES, Child, databases, running

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def wait(until: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def child(tmp_path: Path) -> Child:
    child = Child("sleeper", [sys.executable, "-c", PARENT], dict(os.environ), tmp_path / "sleeper.log")
    child.start()
    wait(lambda: child.log.read_text().endswith("\n"))
    return child


def pids(child: Child) -> list[int]:
    """The grandchildren that all starts of it made."""
    return [int(line) for line in child.log.read_text().split()]


def test_a_killed_child_is_there_again(child: Child) -> None:
    """What it had started ends first: it would hold a server's port."""
    assert child.process is not None and child.look_after() is None
    child.process.kill()
    child.process.wait()
    told = child.look_after()
    assert told is not None and "status -9" in told and str(child.log) in told
    wait(lambda: child.look_after() is None and child.process is not None and child.process.poll() is None)
    wait(lambda: len(pids(child)) == 2)
    assert [alive(pid) for pid in pids(child)] == [False, True]
    child.stop()
    assert not any(alive(pid) for pid in pids(child))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_pauses_grow_for_a_child_that_dies_at_once(tmp_path: Path) -> None:
    child = Child("broken", [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path / "log")
    child.start()
    told: list[str] = []

    def thrice() -> bool:
        told.extend(text for text in [child.look_after()] if text)
        return len(told) == 3

    wait(thrice)
    assert ["in 0 s" in told[0], "in 1 s" in told[1], "in 2 s" in told[2]] == [True] * 3


def test_the_addresses_of_services_that_run_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, tmp_path / "data")
    this = psutil.Process()
    address = {"PREFECT_API_URL": "http://127.0.0.1:4999/api"}
    write_json(tmp_path / SERVICES, {"pid": this.pid, "started": this.create_time(), "environment": address})
    assert running(home) == address
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "OMNIMRI_HOME", "OMNIMRI_DATA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    settle(home)
    assert os.environ["PREFECT_API_URL"] == address["PREFECT_API_URL"]
    write_json(tmp_path / SERVICES, {"pid": this.pid, "started": this.create_time() - 60, "environment": address})
    assert running(home) is None  # a process that got the number of one that is gone


def test_one_variable_names_both_databases() -> None:
    assert databases("postgresql://me:word@db:5432") == (
        "postgresql+asyncpg://me:word@db:5432/prefect",
        "postgresql+psycopg2://me:word@db:5432/mlflow",
    )


@pytest.mark.parametrize("url", ["sqlite:///here", "postgresql://", "postgresql://db/other", "db:5432"])
def test_another_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadInput) as refused:
        databases(url.replace("://", "://me:word@", 1))
    assert "word@" not in str(refused.value)
