"""A checkout with its state is moved or copied after a run: every command works at the new place, the old one is left alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.provenance import REPOSITORY, git_environment

COMMANDS = (
    "models list",
    "models show staging",
    "history",
    "lineage staging",
    "data status",
    "data diff",
    "run --profile debug --dry-run",
)
"""Commands that only read; all print JSON."""


def omnimri(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a checkout, with the home in it."""
    foreign = ("PREFECT_", "MLFLOW_TRACKING", "OMNIMRI_")
    environment = {name: value for name, value in git_environment().items() if not name.startswith(foreign)}
    environment["PYTHONPATH"] = str(checkout)
    command = [sys.executable, "-m", "flows.cli", *words]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    return done


def read(checkout: Path, words: str) -> Any:
    return json.loads(omnimri(checkout, *words.split(), "--json").stdout)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Return path -> size and time of modification of all files."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the debug profile has run."""
    checkout = tmp_path_factory.mktemp("installation") / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(checkout)], check=True, env=git_environment())
    omnimri(checkout, "run", "--profile", "debug")
    return checkout


def move(source: Path, target: Path) -> None:
    source.rename(target)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


def synchronize(source: Path, target: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("no rsync on this machine")
    subprocess.run(["rsync", "-a", f"{source}/", f"{target}/"], check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("transfer", [copy, synchronize, move])
def test_everything_works_at_the_new_place(finished: Path, tmp_path: Path, transfer: Callable[[Path, Path], None]) -> None:
    """Slow: a run of the debug profile, and a dozen commands for each kind of transfer. The move comes last."""
    # cp gives every file a new time of modification, so that the plan announces to read the sources again.
    compared = COMMANDS[:-1] if transfer is copy else COMMANDS
    expected = {command: read(finished, command) for command in compared}
    before = state(finished)
    new = tmp_path / "a new ü#place"
    transfer(finished, new)
    for command in compared:
        found = json.dumps(read(new, command), ensure_ascii=False)
        assert found.replace(str(new), str(finished)) == json.dumps(expected[command], ensure_ascii=False), command
    image = next((new / ".omnimri" / "sources" / "icbm152-2009").glob("*_t1_*.nii.gz"))
    omnimri(new, "predict", str(image), "Segment the white matter.", "--out", str(tmp_path / "out"))
    (dataset, *_) = read(new, "run --profile debug")["model"]["aliases"]  # reuses everything
    assert dataset and read(new, "models list") == expected["models list"]
    assert read(new, "data push")["changed"] is False and read(new, "data pull")["files"] > 0
    promoted = read(new, "models promote staging --to production --reason moved")
    assert "production" in promoted["aliases"] and read(new, "history")["faults"] == []
    omnimri(new, "doctor", "--relocate")
    if finished.exists():
        assert state(finished) == before
    else:
        assert not list(finished.parent.iterdir())
