"""A home on a read-only file system: what only reads works, everything else names the mount, and nothing ends in a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.served import environment

IN_READ_ONLY_MOUNT = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'


def run_in_read_only(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a mount namespace of its own, in which a folder is read-only."""
    namespace = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    command = [*namespace, "sh", "-c", IN_READ_ONLY_MOUNT, str(folder), *words]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A folder that this machine can mount read-only."""
    if shutil.which("unshare") is None:
        pytest.skip("no unshare on this machine: apt-get install util-linux")
    (tmp_path / "home").mkdir()
    (tmp_path / "data").mkdir()
    tried = run_in_read_only(tmp_path, "touch", str(tmp_path / "home" / "file"))
    if "Read-only" not in tried.stderr:
        pytest.skip(f"this user may not mount folders: {tried.stderr.strip()}")
    return tmp_path


def omnimri(folder: Path, words: str) -> subprocess.CompletedProcess[str]:
    done = run_in_read_only(folder, sys.executable, "-m", "flows.cli", *words.split())
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


@pytest.mark.parametrize("words", ["--help", "models list", "run --profile debug --dry-run"])
def test_commands_that_only_read_work(words: str, mounted: Path) -> None:
    done = omnimri(mounted, words)
    assert done.returncode == 0 and done.stdout, done.stderr


@pytest.mark.parametrize("words", ["curate --profile debug", "run --profile debug"])
def test_others_name_the_mount_and_the_remedy(words: str, mounted: Path) -> None:
    done = omnimri(mounted, words)
    assert done.returncode == 1
    assert "the file system is read-only" in done.stderr and "mount it writable, or set OMNIMRI_HOME" in done.stderr
