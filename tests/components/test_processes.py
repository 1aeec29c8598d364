"""A process ends with the one that started it, however that one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from components.provenance import REPOSITORY

CHILD = """
import os, time
from components.processes import end_with_parent
end_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], start_new_session=True)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of the end of its parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_child_in_a_session_of_its_own_ends_with_its_parent(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.send_signal(number)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


GROUP = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
child.wait()
"""
GUARDED = f"""
import os, subprocess, sys
from components.processes import GUARDED, Guard
guard = Guard(30)
environment = {{**os.environ, GUARDED: guard.mark}}
child = subprocess.Popen([sys.executable, '-c', {GROUP!r}], start_new_session=True, env=environment)
if "killed before it tells" not in sys.argv:
    guard.watch([child.pid])
if "release" in sys.argv:
    guard.release()
print(child.pid, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def start_guarded(*words: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a process with a guarded group of two; return it and their process ids."""
    command = [sys.executable, "-c", GUARDED, *words]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert parent.stdout is not None
    return parent, [int(parent.stdout.readline()) for _ in range(2)]


@pytest.mark.parametrize("words", [[], ["killed before it tells"]])
def test_a_guard_stops_whole_groups_after_their_starter_was_killed(words: list[str]) -> None:
    parent, group = start_guarded(*words)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in group):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_guard_that_was_released_stops_nothing() -> None:
    parent, group = start_guarded("release")
    assert parent.stdin is not None and parent.stdout is not None
    parent.stdin.close()
    parent.wait()
    parent.stdout.close()
    try:
        assert all(alive(pid) for pid in group)
    finally:
        for pid in group:
            os.kill(pid, signal.SIGKILL)


def test_a_hangup_that_nohup_has_switched_off_stays_off() -> None:
    code = "import os, signal; from components.processes import raise_on_stop; raise_on_stop(); os.kill(os.getpid(), signal.SIGHUP)"
    for prefix, status in ((["nohup"], 0), ([], 1)):
        done = subprocess.run([*prefix, sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.DEVNULL, capture_output=True)
        assert done.returncode == status
