"""``omnimri serve`` on a small dataset, for tests: started as a user would, asked over HTTP as Prefect's pages would."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from components.home import Home
from components.provenance import REPOSITORY
from tests.helpers.datasets import write_cohort
from tests.helpers.ports import free_port

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
Found = TypeVar("Found")


def wait(until: Callable[[], Found], seconds: float, what: str) -> Found:
    """The first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline, f"{what}: not after {seconds:.0f} s"
        time.sleep(0.25)
    return found


def tiny_profile(root: Path, patients: int, **changes: Any) -> Path:
    """A profile over a cohort of NIfTI files in ``root/source``; the whole chain takes seconds with it."""
    write_cohort(root / "source", patients)
    raw = yaml.safe_load((REPOSITORY / "profiles" / "debug.yaml").read_text())
    raw.update(profile="tiny", datasets=[{"card": "synthetic-brain-nifti", "path": str(root / "source")}], **changes)
    raw["ingestion"]["workers"] = raw["curation"]["workers"] = 1
    raw["registry"] = {"tolerance": 1000.0}  # chance decides such a model's metrics
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def environment(root: Path, **more: str) -> dict[str, str]:
    """Environment of a home under ``root``, without what other tests have set."""
    ours = ("PREFECT_", "MLFLOW_TRACKING", "OMNIMRI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**clean, "OMNIMRI_HOME": str(root / "home"), "OMNIMRI_DATA": str(root / "data"), **more}


@dataclass
class Served:
    """A running ``omnimri serve``."""

    home: Home
    process: subprocess.Popen[str]
    profile: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """One request to Prefect's interface; a server that restarts, or whose database is locked (503), is waited for."""
        for attempt in range(60):
            try:
                answer = httpx.request(
                    method, f"{self.addresses['prefect_api']}{path}", timeout=300, **({"json": body} if body else {})
                )
                if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                    break
            except httpx.TransportError:
                assert attempt < 59
            time.sleep(1)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    def run(self, flow: str, deployment: str, **parameters: Any) -> str:
        """Start a deployment; the id of the run."""
        found = self.ask("GET", f"/deployments/name/{flow}/{deployment}")
        return str(
            self.ask("POST", f"/deployments/{found['id']}/create_flow_run", parameters=parameters, state={"type": "SCHEDULED"})[
                "id"
            ]
        )

    def state(self, run: str) -> str:
        """State of a run."""
        return str(self.ask("GET", f"/flow_runs/{run}")["state_type"])

    def ended(self, run: str, seconds: float) -> str:
        """The state in which a run ends."""
        return wait(lambda: state if (state := self.state(run)) in ENDED else "", seconds, f"end of run {run}")

    def runs(self, flow: str) -> list[dict[str, Any]]:
        """Runs of a flow."""
        return list(self.ask("POST", "/flow_runs/filter", flows={"name": {"any_": [flow]}}))

    def child(self, words: str) -> psutil.Process | None:
        """A process of this installation whose command holds these words."""
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    def flow_process(self, run: str) -> psutil.Process:
        """The process of a run, wherever it hangs."""

        def find() -> psutil.Process | None:
            for process in psutil.process_iter():
                try:
                    if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect.engine" in process.cmdline():
                        return process
                except psutil.Error:
                    continue
            return None

        return wait(find, 120, "process of the run")

    def trainer(self) -> psutil.Process:
        """The process that trains."""
        return wait(lambda: self._trainer(), 300, "training")

    def _trainer(self) -> psutil.Process | None:
        for process in psutil.process_iter():
            try:
                opened = [Path(file.path) for file in process.open_files()]
                if any(path.name == "lock-0" and self.home.root in path.parents for path in opened):
                    return process
            except psutil.Error:
                continue
        return None


@contextmanager
def served(root: Path, *words: str, patients: int = 8, **more: str) -> Iterator[Served]:
    """``omnimri serve`` over a small cohort."""
    profile = root / "tiny.yaml" if (root / "tiny.yaml").exists() else tiny_profile(root, patients)
    ports = ["--port", str(free_port()), "--mlflow-port", str(free_port())]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "serve",
        "--profile",
        str(profile),
        *ports,
        "--every",
        "1",
        "--quiet",
        "1",
        "--no-fetch",
    ]
    with (root / "serve.log").open("a") as log:
        process = subprocess.Popen(
            [*command, *words], env=environment(root, **more), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True
        )
    found = Served(Home(root / "home", root / "data"), process, profile)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (root / "serve.log").read_text()[-3000:]
        found.addresses = json.loads(line)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
