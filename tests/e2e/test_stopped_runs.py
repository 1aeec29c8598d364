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
MOMENTS = (
    ("", 3.0),  # imports
    ("start ", 1.0),  # reading
    ("read synthetic-brain-nifti ", 0.2),  # reading k-space
    ("version data ", 1.5),  # curation
    ("curate ", 0.5),  # validation
    ("validate ", 1.0),  # the first stage imports
    ("vision_pretraining ", 1.5),  # alignment
    ("multimodal_pretraining ", 2.5),  # instruction tuning
    ("instruction_tuning ", 2.0),  # evaluation
    ("evaluate ", 1.0),  # registration
)
"""Ten moments of a run: after the line of which step, and how many seconds later. Each start repeats the lines before."""
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


def finish(root: Path) -> None:
    """Run to the end."""
    assert start(root).wait() == 0, (root / "messages").read_text()[-3000:]


def await_line(root: Path, run: subprocess.Popen[bytes], beginning: str, offset: int) -> None:
    """Wait until a run has written a line that begins so behind an offset of the messages."""
    while not any(line.startswith(beginning) for line in (root / "messages").read_bytes()[offset:].decode().splitlines() or [""]):
        assert run.poll() is None, f"ended before {beginning!r}: {(root / 'messages').read_text()[-3000:]}"
        time.sleep(0.05)


def results(root: Path) -> dict[str, str]:
    """Return stage folder -> MD5 of its weights."""
    models = (root / "home" / "training").glob("*/model/model.safetensors")
    return {path.parts[-3]: file_md5(path) for path in models}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of an undisturbed run."""
    root = tmp_path_factory.mktemp("undisturbed")
    finish(root)
    return results(root)


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("kind", ["process", "group"])
def test_a_run_that_is_stopped_goes_on(undisturbed: dict[str, str], tmp_path: Path, kind: str) -> None:
    """Slow: two whole runs of the debug profile and ten starts, ten minutes each on two cores."""
    root = tmp_path / "a b?%41#ü"
    root.mkdir()
    for beginning, seconds in MOMENTS:
        messages = root / "messages"
        offset = messages.stat().st_size if messages.exists() else 0
        run = start(root)
        await_line(root, run, beginning, offset)
        time.sleep(seconds)
        assert run.poll() is None, f"ended within {seconds} s after {beginning!r}"
        (os.kill if kind == "process" else os.killpg)(run.pid, signal.SIGTERM)
        assert run.wait(GRACE_S) == 128 + signal.SIGTERM, messages.read_text()[-3000:]
        deadline = time.monotonic() + GRACE_S
        while (left := processes(root)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not left, [process.cmdline() for process in left]
    finish(root)
    assert results(root) == undisturbed
    assert "Traceback" not in (root / "messages").read_text()
