"""Whether a registered version answers where nothing but MLflow has been imported: with the code that it carries."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

LIMIT_S = 300
SCRIPT = """
import sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1], suppress_warnings=True)
question = model.input_example
answer = model.predict(question)
wanted = model.metadata.get_output_schema().input_names()
if list(answer.columns) != wanted or len(answer) != len(question) or not answer.map(lambda cell: isinstance(cell, str)).all().all():
    sys.exit(f"the answer has not the form that the signature promises: {list(answer.columns)}, {len(answer)} rows")
"""


def silent(model_uri: str, tracking_uri: str) -> str:
    """Load a version and ask it its own input example in a process of its own.

    Returns:
        What went wrong, in a sentence; empty where the version answers as its signature promises.
    """
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri}
    with tempfile.TemporaryDirectory() as folder:  # -I: neither the current folder nor PYTHONPATH lends it code
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", SCRIPT, model_uri],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.TimeoutExpired:
            return f"it did not answer its input example within {LIMIT_S} s"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines() or ["nothing was said"]
    return f"it does not answer its input example: {said[-1][:300]}"
