"""The report of a pipeline run, and how a run that would change nothing finds the report of the last one.

Nothing here imports Prefect or MLflow, so that a run without work is answered before they are loaded.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from components.errors import OmniMRIError
from components.evaluation import ResultRow
from components.files import folder_state, read_state, write_json
from components.home import Home
from components.progress import report as report_line
from components.provenance import SHORT, digest, file_md5
from components.registry import ModelVersion
from components.registry.inputs import RegistrationInputs
from components.resources import PeakMemory
from components.settings import Settings
from components.tracking.local_versions import find_local_aliases
from flows.steps import changing, plan_run

logger = logging.getLogger(__name__)


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


def data_state(home: Home) -> str:
    """Return the state of every file under ``data/`` and of the settings of DVC, whose remote receives each version."""
    settings = [path for path in (home.data.parent / ".dvc" / name for name in ("config", "config.local")) if path.is_file()]
    return digest(folder_state(home.data), [file_md5(path) for path in settings])


def record_run(home: Home, inputs: RegistrationInputs, data: str, report: PipelineReport) -> None:
    """Keep the report of a finished run for the next run with the same inputs.

    Args:
        data: the state of the data when it was versioned; a file that was changed later must be found.
    """
    places = {"report": os.path.relpath(report.report, home.root), "data_docs": os.path.relpath(report.data_docs, home.root)}
    write_json(_record(home, inputs), {"data": data, "report": {**asdict(report), **places}})


def find_unchanged_run(settings: Settings, home: Home) -> PipelineReport | None:
    """Return the report of the last run with these settings if a run would reuse every result of it.

    A run is needed where the plan has work, a file under ``data/`` or the remote of its versions has changed, an archive may have
    new series, or the version is not in staging; and always for a store or a launcher that is not of this machine. An interrupted
    or damaged state is left to the run, which repairs or names it.
    """
    if settings.launcher != "local" or home.tracking_uri != home.local_store:
        return None
    started = time.monotonic()
    try:
        with PeakMemory() as memory, changing(home, up_to_date=True, waiting=report_line):
            found = _find(settings, home)
    except (OmniMRIError, OSError, ValueError) as error:
        logger.info("the last run cannot be compared: %s", type(error).__name__)
        return None
    seconds = {"check": round(time.monotonic() - started, 1)}
    return None if found is None else replace(found, seconds=seconds, peak_memory_mib=round(memory.mib))


def _find(settings: Settings, home: Home) -> PipelineReport | None:
    steps, inputs = plan_run(settings, home)
    if inputs is None or any(step.state != "reused" for step in steps):
        return None
    stored = read_state(_record(home, inputs))
    if stored.get("data") != data_state(home):
        return None
    report = TypeAdapter(PipelineReport).validate_python(stored.get("report"))
    aliases = find_local_aliases(report.model.name, report.model.version, home)
    if report.refused or "staging" not in aliases:
        return None
    return replace(
        report,
        model=replace(report.model, aliases=aliases),
        report=home.root / report.report,
        data_docs=home.root / report.data_docs,
        tracking_uri=home.tracking_uri,
    )


def _record(home: Home, inputs: RegistrationInputs) -> Path:
    return home.finished_runs / f"{digest(inputs.by_name())[:SHORT]}.json"
