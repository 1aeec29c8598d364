"""`omnimri run` is stopped by SIGTERM at ten moments, as a process and as a process group, and started again each time.

Batch systems, service managers and ``timeout`` do that. The run ends within the grace, nothing is left running, the next start
goes on, and the weights in the end equal those of an undisturbed run bit by bit. The home has a name that URLs must quote.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from components.provenance import file_md5

GRACE_S = 90
"""Time within which a run must end; it includes a training step and a checkpoint on a busy machine, seconds."""
MOMENTS = 10
COMMAND = [sys.executable, "-m", "flows.cli", "run", "--profile", "debug"]


def start(root: Path) -> subprocess.Popen[bytes]:
    """Start a run in a process group of its own; its messages are appended to ``messages`` in the root."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_TRACKING"))}
    environment = {**inherited, "OMNIMRI_HOME": str(root / "home"), "OMNIMRI_DATA": str(root / "data"), "OMNIMRI_MARK": str(root)}
    with (root / "messages").open("ab") as messages:
        return subprocess.Popen(COMMAND, env=environment, stdout=messages, stderr=messages, start_new_session=True)


def processes(root: Path) -> list[psutil.Process]:
    """Return the running processes of the runs of a root."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("OMNIMRI_MARK") == str(root):
                found.append(process)
        except psutil.Error:
            continue
    return found


def finish(root: Path) -> float:
    """Run to the end and return the seconds that it took."""
    started = time.monotonic()
    status = start(root).wait()
    assert status == 0, (root / "messages").read_text()[-3000:]
    return time.monotonic() - started


def results(root: Path) -> dict[str, str]:
    """Return stage folder -> MD5 of its weights."""
    models = (root / "home" / "training").glob("*/model/model.safetensors")
    return {path.parts[-3]: file_md5(path) for path in models}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Results of an undisturbed run, and its duration, seconds."""
    root = tmp_path_factory.mktemp("undisturbed")
    duration = finish(root)
    return results(root), duration


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kind", ["process", "group"])
def test_a_run_that_is_stopped_goes_on(undisturbed: tuple[dict[str, str], float], tmp_path: Path, kind: str) -> None:
    """Slow: two whole runs of the debug profile and ten starts, ten minutes each on two cores."""
    expected, duration = undisturbed
    root = tmp_path / "a b?%41#ü"
    root.mkdir()
    for moment in range(MOMENTS):
        run = start(root)
        try:
            status = run.wait(duration * (moment + 1) / (MOMENTS + 1))
            assert status == 0, (root / "messages").read_text()[-3000:]
            break  # what was done before is reused, so that late starts may finish
        except subprocess.TimeoutExpired:
            (os.kill if kind == "process" else os.killpg)(run.pid, signal.SIGTERM)
        assert run.wait(GRACE_S) == 128 + signal.SIGTERM, (root / "messages").read_text()[-3000:]
        deadline = time.monotonic() + GRACE_S
        while (left := processes(root)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left, [process.cmdline() for process in left]
    finish(root)
    assert results(root) == expected
    assert "Traceback" not in (root / "messages").read_text()
