"""De-identified files -> volume store and tables -> Great Expectations gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.futures import wait

from components.catalog import load_card
from components.curation import curate
from components.curation.corpus import SUMMARY, Corpus
from components.curation.curate_corpus import CurationTarget, VolumeJob, run_volume_job
from components.curation.preview import write_preview
from components.curation.table_rows import CurationReport
from components.home import Home
from components.settings import Settings
from components.validation import ValidationReport, validate
from components.validation.validation_gate import REPORT
from flows.artifacts import tell_validation
from flows.retries import STEP
from flows.steps import curate_inputs, remember, validate_inputs, writing

TaskRunner = Literal["processes", "dask"]
BATCH = 16
"""Volumes of one task on a cluster: a task costs the scheduler more than a small volume does the worker."""


@task(name="curate", **STEP)
def curate_volumes(settings: Settings) -> CurationReport:
    """Bring the corpus up to date with ``data/``; unchanged volumes are left alone."""
    home = Home.open()
    inputs = curate_inputs(settings, home)
    report = curate(home.data, [load_card(dataset.card) for dataset in settings.datasets], home.curated, settings.curation)
    remember(home, "curate", inputs, home.curated / SUMMARY)
    _say(report)
    return report


@task(name="curate some volumes", **STEP)
def curate_batch(jobs: list[VolumeJob], target: CurationTarget) -> int:
    """Curate some volumes on whatever machine this runs on; it must see ``data/`` and the corpus under the same paths."""
    for job in jobs:
        run_volume_job(job, target)
    return len(jobs)


@flow(name="curate on a cluster", validate_parameters=False)
def curate_on_cluster(settings: Settings) -> CurationReport:
    """As :func:`curate_volumes`, volumes being tasks of this flow's runner."""

    def run(jobs: list[VolumeJob], target: CurationTarget) -> None:
        batches = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
        futures = [curate_batch.submit(batch, target) for batch in batches]
        wait(futures)
        for future in futures:
            future.result()

    home = Home.open()
    inputs = curate_inputs(settings, home)
    report = curate(home.data, [load_card(dataset.card) for dataset in settings.datasets], home.curated, settings.curation, run)
    remember(home, "curate", inputs, home.curated / SUMMARY)
    _say(report)
    return report


def _on_dask(settings: Settings, scheduler: str | None) -> CurationReport:
    from prefect_dask import DaskTaskRunner

    local = {"n_workers": settings.curation.workers, "threads_per_worker": 1, "dashboard_address": None}
    runner: Any = DaskTaskRunner(address=scheduler) if scheduler else DaskTaskRunner(cluster_kwargs=local)
    return curate_on_cluster.with_options(task_runner=runner)(settings)


def _say(report: CurationReport) -> None:
    get_run_logger().info(
        "%d volumes (%d new, %d reused, %d removed), %d descriptions, %d instructions",
        report.volumes_total,
        report.volumes_new,
        report.volumes_reused,
        report.volumes_removed,
        report.descriptions,
        report.instructions,
    )


@task(name="validate", **STEP)
def validate_corpus() -> ValidationReport:
    """Hold every table against its expectations and write the Data Docs."""
    home = Home.open()
    inputs = validate_inputs(home)
    report = validate(home.curated, home.validation)
    if report.passed:
        remember(home, "validate", inputs, home.validation / REPORT)
    tell_validation(report)
    get_run_logger().info("validation %s: %s", "passed" if report.passed else "FAILED", report.data_docs)
    return report


@flow(name="curate", flow_run_name="curate")
def curate_corpus(
    settings: Settings, task_runner: TaskRunner = "processes", scheduler: str | None = None
) -> tuple[CurationReport, ValidationReport]:
    """Curate, then validate; a corpus that fails its expectations stops here.

    Args:
        task_runner: where volumes are made: in processes of this machine, or on a Dask cluster.
        scheduler: its address; None = a cluster on this machine, for as long as the flow runs.
    """
    with writing(Home.open(), waiting=get_run_logger().info):
        curation = _on_dask(settings, scheduler) if task_runner == "dask" else curate_volumes(settings)
        validation = validate_corpus()
        validation.require()
    return curation, validation


def preview_corpus(count: int) -> Path:
    """Write the page with samples of what was curated (``curated/preview.html``)."""
    home = Home.open()
    return write_preview(Corpus.open(home.curated), home.curated / "preview.html", count)
