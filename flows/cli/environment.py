"""The process environment of a command, set before any of the large libraries is imported.

Prefect, DVC, MLflow, Great Expectations and the Hugging Face libraries send telemetry or look for updates by default. All of
this is switched off here; a variable that the user has set keeps its value.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from components.errors import OmniMRIError
from components.home import Home, sqlite_address
from components.network import LOOPBACK, bypass_proxies
from flows.server.logins import log_in
from flows.server.supervisor import PREFECT_DATABASE, running_services

OFFLINE_DEFAULTS = {
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
WAITING = {"GOMP_SPINCOUNT": "1000"}
"""OpenMP's threads wait for each other in a short loop, then sleep. By default the loop is long, and takes the core from the thread
that they wait for as soon as another process works; without a loop, a quiet machine loses a third (``benchmarks.under_load``)."""


def set_defaults(home: Home) -> None:
    """Set the variables that the user has not set: no telemetry, no downloads, Prefect's state in ``home``, running services."""
    for name, value in (OFFLINE_DEFAULTS | WAITING).items():
        os.environ.setdefault(name, value)
    bypass_proxies(*LOOPBACK)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # half a minute; by default MLflow tries for four minutes
    if "PREFECT_HOME" not in os.environ:
        with suppress(OSError):  # --help and reading commands need no folder; the others report the fault when they write
            home.prefect.mkdir(parents=True, exist_ok=True)  # Prefect does not create missing parents
        os.environ["PREFECT_HOME"] = str(home.prefect)
        if set("?%") & set(str(home.prefect)):  # Prefect itself would not quote them
            os.environ.setdefault(PREFECT_DATABASE, sqlite_address(home.prefect / "prefect.db", "aiosqlite"))
    # A cold machine needs longer than the default 20 s to start the temporary server.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")
    if "PREFECT_API_URL" not in os.environ and (services := running_services(home)) is not None:
        os.environ.update({name: value for name, value in services.items() if name not in os.environ})
    log_in()
    os.environ.update(OMNIMRI_HOME=str(home.root), OMNIMRI_DATA=str(home.data))  # children may have another current directory
    for logger in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(logger).addFilter(drop_traceback)


def drop_traceback(record: logging.LogRecord) -> bool:
    """Remove the traceback of a user-facing error from a log record; Prefect would log it for the task and for every flow."""
    if record.exc_info and isinstance(record.exc_info[1], OmniMRIError):
        record.exc_info = None
    return True
