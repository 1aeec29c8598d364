"""Smoke test of a registered version: does it answer in a clean process, with only the code that is stored with it?"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

TIMEOUT_S = 300
SCRIPT = """
import sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True)
request = model.input_example
answer = model.predict(request)
expected = model.metadata.get_output_schema().input_names()
texts = answer.map(lambda cell: isinstance(cell, str)).all().all()
if list(answer.columns) != expected or len(answer) != len(request) or not texts:
    sys.exit(f"the answer does not match the signature: {list(answer.columns)}, {len(answer)} rows")
"""


def failure_reason(model_uri: str, tracking_uri: str) -> str:
    """Load a version in a clean process and predict its input example.

    Returns:
        One sentence that describes the failure; empty if the answer matches the signature.
    """
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    with tempfile.TemporaryDirectory() as folder:  # -I: no code from the current folder or PYTHONPATH
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", SCRIPT, model_uri],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"no prediction of the input example within {TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    error_lines = done.stderr.strip().splitlines() or ["no error message"]
    return f"predicting the input example failed: {error_lines[-1][:300]}"
