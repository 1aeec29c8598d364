"""The output of libraries goes to the log file of the command, that of the command to the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

COMMAND = """
import logging, os, sys, warnings
from components.progress import step
from flows.cli import output, run_log

run_log.enable()
with run_log.run_log("test"), step("work"):
    print("a library prints")
    os.write(2, b"a C++ library prints\\n")
    os.system("echo a child process prints")
    warnings.warn("a library warns")
    logging.getLogger("components.curation").warning("no patient is in the test split")
    logging.getLogger("somebody.else").warning("deprecated")
output.emit({"answer": 42})
run_log.finish()
print("Stopping temporary server", file=sys.stderr)
os.write(1, b"at exit\\n")
"""


def test_only_steps_our_warnings_and_results_reach_the_terminal(tmp_path: Path) -> None:
    environment = {**os.environ, "OMNIMRI_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMMAND], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"answer": 42}
    warning, work, path = done.stderr.splitlines()
    assert warning == "warning: no patient is in the test split"
    assert work.startswith("work  ") and path.startswith("log: ")
    log = Path(path.removeprefix("log: ")).read_text()
    expected = ("a library prints", "a C++ library prints", "a child process prints", "a library warns", "deprecated", "at exit")
    assert all(text in log for text in (*expected, "Stopping temporary server"))
