"""The process environment of a run, settled before any of the libraries is imported.

Prefect, DVC, MLflow, Great Expectations and the Hugging Face libraries each phone home or look for updates unless told not to.
Whatever the user has set stands.
"""

from __future__ import annotations

import logging
import os

from components.errors import OmniMRIError
from components.home import Home
from flows.server.supervisor import running

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def settle(home: Home) -> None:
    """Set what is not set: no telemetry, no downloads, Prefect's state under ``home``, and its services while they run."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "PREFECT_HOME" not in os.environ:
        home.prefect.mkdir(parents=True, exist_ok=True)  # Prefect does not make missing parents, and then waits in vain
        os.environ["PREFECT_HOME"] = str(home.prefect)
    # A cold machine needs longer than the default 20 s to start the temporary server.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if "PREFECT_API_URL" not in os.environ and (services := running(home)) is not None:
        os.environ.update({name: value for name, value in services.items() if name not in os.environ})
    os.environ.setdefault("OMNIMRI_HOME", str(home.root))
    os.environ.setdefault("OMNIMRI_DATA", str(home.data))
    for runs in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(runs).addFilter(explained)


def explained(record: logging.LogRecord) -> bool:
    """Take the traceback off an error that says what to do; Prefect would print it for task, flow and the flow around that."""
    if record.exc_info and isinstance(record.exc_info[1], OmniMRIError):
        record.exc_info = None
    return True
