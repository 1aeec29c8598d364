"""Locks between processes: one writer, many readers, and no lock left behind by a killed process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from components.home import Home
from components.locks import LockUpgradeError, claim, claim_data

HOLDER = "import sys, time; from pathlib import Path; from components.locks import claim\n"
HOLD = HOLDER + "with claim(Path(sys.argv[1]), shared=sys.argv[2] == 'shared'):\n print('held', flush=True)\n time.sleep(60)"


def hold(path: Path, mode: str) -> subprocess.Popen[str]:
    """Start another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("theirs", "ours", "waits"),
    [("exclusive", False, True), ("shared", False, True), ("exclusive", True, True), ("shared", True, False)],
)
def test_a_writer_excludes_everybody_and_readers_share(tmp_path: Path, theirs: str, ours: bool, waits: bool) -> None:
    messages: list[str] = []
    other = hold(tmp_path / "lock", theirs)

    def kill_holder(message: str) -> None:
        messages.append(message)
        other.kill()  # the kernel releases the lock

    with claim(tmp_path / "lock", shared=ours, waiting=kill_holder):
        assert bool(messages) == waits
    other.kill()
    other.wait()
    if waits and theirs == "exclusive":
        assert str(other.pid) in messages[0]


def test_a_process_claims_its_own_lock_again_without_waiting(tmp_path: Path) -> None:
    def fail(message: str) -> None:
        pytest.fail(message)

    with claim(tmp_path / "lock"), claim(tmp_path / "lock", waiting=fail), claim(tmp_path / "lock", shared=True, waiting=fail):
        pass
    with claim(tmp_path / "lock", shared=True, waiting=fail), claim(tmp_path / "lock", shared=True, waiting=fail):
        pass


def test_a_shared_lock_is_never_upgraded_silently(tmp_path: Path) -> None:
    with claim(tmp_path / "lock", shared=True):
        with pytest.raises(LockUpgradeError, match="held as shared, requested as exclusive"), claim(tmp_path / "lock"):
            pytest.fail("entered as a writer beside other readers")
        other = hold(tmp_path / "lock", "shared")  # the refused request has not changed the mode
        other.kill()
        other.wait()
    with claim(tmp_path / "lock"):
        pass


def test_the_outermost_context_releases_the_lock(tmp_path: Path) -> None:
    with claim(tmp_path / "lock"):
        with claim(tmp_path / "lock", shared=True):
            pass
        request = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)"
        probe = subprocess.run([sys.executable, "-c", request, str(tmp_path / "lock")], capture_output=True)
        assert b"BlockingIOError" in probe.stderr
    hold(tmp_path / "lock", "exclusive").kill()


HOLD_DATA = """
import sys, time
from pathlib import Path
from components.home import Home
from components.locks import claim_data
with claim_data(Home(Path(sys.argv[1]), Path(sys.argv[2]))):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("data", "waits"), [("data", True), ("other/data", False)])
def test_two_homes_with_the_same_data_have_one_writer(tmp_path: Path, data: str, waits: bool) -> None:
    command = [sys.executable, "-c", HOLD_DATA, str(tmp_path / "one"), str(tmp_path / "data")]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    messages: list[str] = []

    def kill_holder(message: str) -> None:
        messages.append(message)
        other.kill()

    home = Home(tmp_path / "two", tmp_path / data)
    with claim_data(home, kill_holder), claim_data(home, lambda message: pytest.fail(message)):
        assert bool(messages) == waits and not (waits and "another home" not in messages[0])
    other.kill()
    other.wait()
