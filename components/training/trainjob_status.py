"""Report the progress of a stage to Kubeflow Trainer, which shows it in ``status.trainerStatus`` of the TrainJob.

Trainer 2.2 and later with the feature gate ``TrainJobStatus`` gives the containers an address, a certificate authority and a token
(kubeflow/trainer, docs/user-guides/trainjob-progress.md). Elsewhere nothing is reported. Training never waits for a report, and a
report that fails is no error.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

URL, CA_CERTIFICATE, TOKEN = "KUBEFLOW_TRAINER_SERVER_URL", "KUBEFLOW_TRAINER_SERVER_CA_CERT", "KUBEFLOW_TRAINER_SERVER_TOKEN"
INTERVAL_S, TIMEOUT_S = 5.0, 5.0
"""Shortest time between two reports, which the guide demands, and time limit of each."""
MAX_VALUE_CHARACTERS = 64
REFUSALS = (401, 403, 404, 405, 422)
MAX_REFUSALS = 5
"""Number of refusals in a row after which nothing more is reported."""


@dataclass
class TrainJobStatus:
    """Reporter of one stage; a thread of its own sends the latest state."""

    url: str
    ca_certificate: Path
    token: Path
    interval_s: float = INTERVAL_S
    _latest: dict[str, Any] | None = None
    _refusals: int = 0
    _reported_fault: bool = False
    _started: tuple[float, int] | None = None
    _changed: threading.Event = field(default_factory=threading.Event)
    _closed: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_environment(cls) -> TrainJobStatus | None:
        """Return a reporter whose thread runs, or None if no Kubeflow Trainer asks for reports."""
        values = [os.environ.get(name) for name in (URL, CA_CERTIFICATE, TOKEN)]
        url, ca_certificate, token = values
        if not url or not ca_certificate or not token:
            return None
        reporter = cls(url, Path(ca_certificate), Path(token))
        reporter.start()
        return reporter

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="trainjob-status", daemon=True)
        self._thread.start()

    def report(self, done: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Report that ``done`` of ``steps`` steps are finished; return immediately."""
        now = time.monotonic()
        self._started = self._started or (now, done)
        state: dict[str, Any] = {
            "progressPercentage": done * 100 // steps,
            "metrics": [
                {"name": name, "value": f"{value:.6g}"[:MAX_VALUE_CHARACTERS]}
                for name, value in metrics.items()
                if math.isfinite(value)
            ],
            "lastUpdatedTime": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        elapsed_s, finished = now - self._started[0], done - self._started[1]
        if finished > 0:
            state["estimatedRemainingSeconds"] = round(elapsed_s / finished * (steps - done))
        self._latest = state
        self._changed.set()

    def close(self) -> None:
        """Send the last state and end the thread; wait no longer than one report may take."""
        self._closed.set()
        self._changed.set()
        self._thread.join(2 * TIMEOUT_S)

    def _run(self) -> None:
        while self._refusals < MAX_REFUSALS:
            self._changed.wait()
            self._changed.clear()
            closing = self._closed.is_set()
            state, self._latest = self._latest, None
            if state is not None:
                self._send(state)
            if closing:
                return
            self._closed.wait(self.interval_s)

    def _send(self, state: dict[str, Any]) -> None:
        try:
            headers = {"Authorization": f"Bearer {self.token.read_text().strip()}", "Content-Type": "application/json"}
            with urllib3.PoolManager(ca_certs=str(self.ca_certificate), retries=False, timeout=TIMEOUT_S) as pool:
                body = json.dumps({"trainerStatus": state})
                response = pool.request("POST", self.url, body=body, headers=headers)
            fault = "" if response.status < 300 else f"{response.status}: {response.data.decode(errors='replace')[:200]}"
            self._refusals = self._refusals + 1 if response.status in REFUSALS else 0
        except (OSError, urllib3.exceptions.HTTPError) as error:
            fault = f"{type(error).__name__}: {error}"
        if fault and not self._reported_fault:
            self._reported_fault = True
            print(f"Kubeflow Trainer does not accept the progress ({fault}); training continues", file=sys.stderr, flush=True)
