"""Locks between processes: one writer, many readers, nothing left behind by a process that was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.locks import claim

HOLDER = "import sys, time; from pathlib import Path; from components.locks import claim\n"
HOLD = HOLDER + "with claim(Path(sys.argv[1]), shared=sys.argv[2] == 'shared'):\n print('held', flush=True)\n time.sleep(60)"


def hold(path: Path, kind: str) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("theirs", "ours", "waits"), [("alone", False, True), ("shared", False, True), ("alone", True, True), ("shared", True, False)]
)
def test_writers_are_alone_and_readers_share(tmp_path: Path, theirs: str, ours: bool, waits: bool) -> None:
    told: list[str] = []
    other = hold(tmp_path / "lock", theirs)

    def end_it(text: str) -> None:
        told.append(text)
        other.kill()  # the kernel gives the lock back

    with claim(tmp_path / "lock", shared=ours, waiting=end_it):
        assert bool(told) == waits
    other.kill()
    other.wait()
    if waits and theirs == "alone":
        assert str(other.pid) in told[0]


def test_who_holds_it_goes_on(tmp_path: Path) -> None:
    began = time.monotonic()
    with claim(tmp_path / "lock"), claim(tmp_path / "lock"), claim(tmp_path / "lock", shared=True):
        pass
    with claim(tmp_path / "lock", waiting=lambda text: pytest.fail(text)):
        assert time.monotonic() - began < 1
