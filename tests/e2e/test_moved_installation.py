"""A checkout with its state is moved or copied after a run: every command works at the new place, the old one is left alone."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from components.provenance import REPOSITORY, git_environment
from tests.helpers.ports import free_port
from tests.helpers.served import wait

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
ANOTHER_MODEL = ("--set", "training.instruction_tuning.steps=5", "--set", "registry.tolerance=1000")
"""Settings of a second version; chance decides the metrics of such a model."""


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment of a command of a checkout, with the home in it."""
    foreign = ("PREFECT_", "MLFLOW_TRACKING", "OMNIMRI_")
    inherited = {name: value for name, value in git_environment().items() if not name.startswith(foreign)}
    return {**inherited, "PYTHONPATH": str(checkout)}


def omnimri(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of a checkout."""
    command = [sys.executable, "-m", "flows.cli", *words]
    done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True, check=False)
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
    """A checkout in which the debug profile has run twice: version 1 is in production, version 2 in staging."""
    checkout = tmp_path_factory.mktemp("installation") / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(checkout)], check=True, env=git_environment())
    omnimri(checkout, "run", "--profile", "debug")
    omnimri(checkout, "models", "promote", "staging", "--to", "production", "--reason", "first")
    omnimri(checkout, "run", "--profile", "debug", *ANOTHER_MODEL)
    return checkout


def ask_server(checkout: Path, image: Path) -> list[str]:
    """Serve the production version, ask it over HTTP, stop it, and return its answers."""
    port = free_port()
    command = [sys.executable, "-m", "flows.cli", "models", "serve", "production", "--port", str(port)]
    row = {"image": base64.b64encode(image.read_bytes()).decode(), "instruction": "Segment the white matter."}
    server = subprocess.Popen(command, cwd=checkout, env=environment(checkout), stderr=subprocess.PIPE, text=True)

    def answers() -> bool:
        assert server.poll() is None, server.stderr and server.stderr.read()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").is_success
        except httpx.TransportError:
            return False

    try:
        wait(answers, 120, "the server")
        reply = httpx.post(f"http://127.0.0.1:{port}/invocations", json={"dataframe_records": [row]}, timeout=120)
        assert reply.is_success, reply.text
        return [str(one["text"]) for one in reply.json()["predictions"]]
    finally:
        server.terminate()
        server.communicate(timeout=60)


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
    """Slow: two runs of the debug profile; for each kind of transfer a dozen commands and a reproduction. The move comes last."""
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
    again = read(new, f"run --profile debug {' '.join(ANOTHER_MODEL)}")  # reuses everything
    assert again["model"]["aliases"] and read(new, "models list") == expected["models list"]
    assert read(new, "data push")["changed"] is False and read(new, "data pull")["files"] > 0
    promoted = read(new, "models promote staging --to production --force --reason moved")
    assert "production" in promoted["aliases"]
    assert read(new, "rollback --reason moved")["version"] == "1"
    assert read(new, "history")["faults"] == []
    assert len(ask_server(new, image)) == 1
    assert read(new, "reproduce staging")["equal"] is True
    omnimri(new, "doctor", "--relocate")
    if finished.exists():
        assert state(finished) == before
    else:
        assert not list(finished.parent.iterdir())
