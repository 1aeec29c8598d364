"""Child processes are restarted when they end, and are stopped together with their own children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from components.errors import BadInput
from components.files import write_json
from components.home import Home
from components.provenance import REPOSITORY
from flows.cli.environment import set_defaults
from flows.server import supervisor
from flows.server.supervisor import SERVICES, STOP_S, Child, database_urls, running_services
from tests.helpers.ports import free_port
from tests.helpers.served import environment

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print(child.pid, flush=True)
time.sleep(3600)
"""


def wait(until: Callable[[], object], seconds: float = 1000) -> None:
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
    """Return the process ids of the grandchildren of all starts."""
    return [int(line) for line in child.log.read_text().split()]


def test_a_killed_child_is_restarted(child: Child) -> None:
    """Its own children are killed first: they could hold a server's port."""
    assert child.process is not None and child.restart_if_ended() is None
    child.process.kill()
    child.process.wait()
    message = child.restart_if_ended()
    assert message is not None and "status -9" in message and str(child.log) in message
    wait(lambda: child.restart_if_ended() is None and child.process is not None and child.process.poll() is None)
    wait(lambda: len(pids(child)) == 2)
    assert [alive(pid) for pid in pids(child)] == [False, True]
    assert child.groups == [child.process.pid]  # the number of the first group may be another process's later
    child.stop()
    assert not any(alive(pid) for pid in pids(child))


def test_a_child_is_not_restarted_before_the_children_of_the_killed_one_have_ended(
    child: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine may take seconds to end a killed process, which holds its port until then."""
    assert child.process is not None
    monkeypatch.setattr(supervisor, "signal_groups", lambda groups, number: None)
    child.process.kill()
    child.process.wait()
    assert child.restart_if_ended() is not None
    child.not_before = time.monotonic()
    assert child.restart_if_ended() is None and child.process.poll() is not None
    child.not_before = time.monotonic() - STOP_S
    assert child.restart_if_ended() is None and child.process.poll() is None and len(child.groups) == 2
    child.stop()


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_services_that_are_starting_end_with_a_supervisor_that_is_stopped_or_killed(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "flows.cli", "serve", "--port", str(free_port()), "--mlflow-port", str(free_port())]
    with (tmp_path / "messages").open("wb") as stream:
        serve = subprocess.Popen(command, cwd=REPOSITORY, env=environment(tmp_path), stdout=stream, stderr=stream)
    home = tmp_path / "home"
    wait(
        lambda: (home / "logs" / "mlflow.log").exists() or serve.poll() is not None
    )  # both servers have been started, none answers
    started = psutil.Process(serve.pid).children(recursive=True)
    assert len(started) >= 3, (tmp_path / "messages").read_text()
    serve.send_signal(number)
    assert serve.wait(STOP_S) == (-number if number == signal.SIGKILL else 128 + number), (tmp_path / "messages").read_text()
    wait(lambda: not any(alive(process.pid) for process in started), STOP_S)
    assert (home / SERVICES).exists() == (number == signal.SIGKILL) and running_services(Home(home, tmp_path / "data")) is None


def test_pauses_grow_for_a_child_that_ends_at_once(tmp_path: Path) -> None:
    child = Child("broken", [sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), tmp_path / "log")
    child.start()
    messages: list[str] = []

    def thrice() -> bool:
        messages.extend(text for text in [child.restart_if_ended()] if text)
        return len(messages) == 3

    wait(thrice)
    assert ["in 0 s" in messages[0], "in 1 s" in messages[1], "in 2 s" in messages[2]] == [True] * 3


def test_the_addresses_of_running_services_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path, tmp_path / "data")
    this = psutil.Process()
    address = {"PREFECT_API_URL": "http://127.0.0.1:4999/api"}
    write_json(tmp_path / SERVICES, {"pid": this.pid, "started": this.create_time(), "environment": address})
    assert running_services(home) == address
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "OMNIMRI_HOME", "OMNIMRI_DATA"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_defaults(home)
    assert os.environ["PREFECT_API_URL"] == address["PREFECT_API_URL"]
    write_json(tmp_path / SERVICES, {"pid": this.pid, "started": this.create_time() - 60, "environment": address})
    assert running_services(home) is None  # another process with the id of an ended one


def test_one_variable_names_both_databases() -> None:
    assert database_urls("postgresql://me:word@db:5432") == (
        "postgresql+asyncpg://me:word@db:5432/prefect",
        "postgresql+psycopg2://me:word@db:5432/mlflow",
    )


@pytest.mark.parametrize("url", ["sqlite:///here", "postgresql://", "postgresql://db/other", "db:5432"])
def test_another_address_is_refused_without_printing_its_password(url: str) -> None:
    with pytest.raises(BadInput) as refused:
        database_urls(url.replace("://", "://me:word@", 1))
    assert "word@" not in str(refused.value)
