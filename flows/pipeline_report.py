"""The report of a pipeline run, and how a run that would change nothing finds the report of the last one.

Nothing here imports Prefect or MLflow, so that a run without work is answered before they are loaded.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from components.evaluation import ResultRow
from components.files import folder_state, read_state, write_json
from components.home import Home
from components.progress import report as report_line
from components.provenance import SHORT, digest
from components.registry import ModelVersion
from components.registry.inputs import RegistrationInputs
from components.resources import PeakMemory
from components.settings import Settings
from components.tracking.local_versions import find_local_aliases
from flows.steps import changing, plan_run

STAGED = {"staging", "production"}


@dataclass(frozen=True)
class PipelineReport:
    """Results of a run, and where they are.

    Attributes:
        seconds: wall time of each part of the run, seconds.
        peak_memory_mib: highest resident memory of the run's process tree, MiB.
        refused: why the model was not promoted to staging; "" if it was.
    """

    profile: str
    data_digest: str
    corpus_digest: str
    volumes: int
    quarantined: int
    rows: tuple[ResultRow, ...]
    model: ModelVersion
    run_id: str
    report: Path
    data_docs: Path
    tracking_uri: str
    seconds: dict[str, float]
    peak_memory_mib: float
    refused: str


def record_run(home: Home, inputs: RegistrationInputs, report: PipelineReport) -> None:
    """Keep the report of a finished run for the next run with the same inputs."""
    places = {"report": os.path.relpath(report.report, home.root), "data_docs": os.path.relpath(report.data_docs, home.root)}
    write_json(_record(home, inputs), {"data": folder_state(home.data), "report": {**asdict(report), **places}})


def find_unchanged_run(settings: Settings, home: Home) -> PipelineReport | None:
    """Return the report of the last run with these settings if a run would reuse every result of it.

    A run is needed where the plan has work, a file under ``data/`` has changed, an archive may have new series, or the version is
    no longer in staging or production; and always for a refused version, whose gate may be open today, and for a store or a
    launcher that is not of this machine.
    """
    if settings.launcher != "local" or home.tracking_uri != home.local_store:
        return None
    started = time.monotonic()
    with PeakMemory() as memory, changing(home, up_to_date=True, waiting=report_line):
        steps, inputs = plan_run(settings, home)
        if inputs is None or any(step.state != "reused" for step in steps):
            return None
        report = _read(_record(home, inputs), home)
        aliases = find_local_aliases(report.model.name, report.model.version, home) if report else ()
    if report is None or report.refused or not STAGED & set(aliases):
        return None
    seconds = {"check": round(time.monotonic() - started, 1)}
    return replace(report, model=replace(report.model, aliases=aliases), seconds=seconds, peak_memory_mib=round(memory.mib))


def _read(record: Path, home: Home) -> PipelineReport | None:
    """Read a kept report; None if there is none that this code can read, or a file under ``data/`` has changed since."""
    stored = read_state(record)
    if stored.get("data") != folder_state(home.data):
        return None
    try:
        report = TypeAdapter(PipelineReport).validate_python(stored.get("report"))
    except ValidationError:
        return None
    return replace(report, report=home.root / report.report, data_docs=home.root / report.data_docs, tracking_uri=home.tracking_uri)


def _record(home: Home, inputs: RegistrationInputs) -> Path:
    return home.finished_runs / f"{digest(inputs.by_name())[:SHORT]}.json"
