"""De-identified files -> volume store and tables -> Great Expectations gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from prefect import flow, task
from prefect.futures import wait

from components.curation import curate, curation_inputs, is_current
from components.curation.corpus import SUMMARY, Corpus
from components.curation.curate_corpus import CurationTarget, JobRunner, VolumeJob, run_in_processes, run_jobs
from components.curation.preview import write_preview
from components.curation.table_rows import CurationReport
from components.home import Home
from components.settings import Settings
from components.validation import ValidationReport, validate, validation_inputs
from components.validation.validation_gate import REPORT
from flows.artifacts import publish_validation
from flows.reporting import report_waiting, reported_step
from flows.retries import STEP
from flows.steps import cards_of, changing, is_validated, preparing, record_step

TaskRunner = Literal["processes", "dask"]
BATCH = 16
"""Volumes of one cluster task: the scheduling of a task costs more than the curation of a small volume."""


@task(name="curate", **STEP)
def curate_volumes(settings: Settings) -> CurationReport:
    """Bring the corpus up to date with ``data/``, in processes of this machine."""
    return _curate(settings, run_in_processes)


@task(name="curate some volumes", **STEP)
def curate_batch(jobs: list[VolumeJob], target: CurationTarget) -> int:
    """Curate some volumes on the machine that runs this task; it needs ``data/`` and the corpus under the same paths."""
    run_jobs(jobs, target)
    return len(jobs)


@flow(name="curate on a cluster", validate_parameters=False)
def curate_on_cluster(settings: Settings) -> CurationReport:
    """Bring the corpus up to date with ``data/``, with a task of this flow's runner for each batch of volumes."""

    def run(jobs: list[VolumeJob], target: CurationTarget) -> None:
        batches = [jobs[start : start + BATCH] for start in range(0, len(jobs), BATCH)]
        futures = [curate_batch.submit(batch, target) for batch in batches]
        wait(futures)
        for future in futures:
            future.result()

    return _curate(settings, run)


def _curate(settings: Settings, run: JobRunner) -> CurationReport:
    home, cards = Home.open(), cards_of(settings)
    with reported_step("curate") as step:
        inputs = curation_inputs(home.data, cards, settings.curation)
        with changing(home, is_current(home.curated, inputs), report_waiting):
            report = curate(home.data, cards, home.curated, settings.curation, run)
            record_step(home, "curate", inputs.by_name(), home.curated / SUMMARY)
        step.result = (
            f"{report.volumes_total} volumes ({report.volumes_new} new, {report.volumes_reused} reused, {report.volumes_removed} "
            f"removed), {report.descriptions} descriptions, {report.instructions} instructions"
        )
    return report


def curate_on_dask(settings: Settings, scheduler: str | None) -> CurationReport:
    """Curate on a Dask cluster.

    Args:
        settings: of the run.
        scheduler: address of the cluster; None = a temporary one on this machine.
    """
    from prefect_dask import DaskTaskRunner

    local = {"n_workers": settings.curation.workers, "threads_per_worker": 1, "dashboard_address": None}
    runner: Any = DaskTaskRunner(address=scheduler) if scheduler else DaskTaskRunner(cluster_kwargs=local)
    on_dask: Callable[[Settings], CurationReport] = curate_on_cluster.with_options(task_runner=runner)
    return on_dask(settings)


@task(name="validate", **STEP)
def validate_corpus() -> ValidationReport:
    """Check every table against its expectations, and write the Data Docs."""
    home = Home.open()
    with reported_step("validate") as step:
        inputs = validation_inputs(home.curated).by_name()
        with changing(home, is_validated(home), report_waiting):
            report = validate(home.curated, home.validation)
            if report.passed:
                record_step(home, "validate", inputs, home.validation / REPORT)
        step.result = "passed" if report.passed else f"FAILED: {report.data_docs}"
    publish_validation(report)
    return report


@flow(name="curate", flow_run_name="curate")
def curate_corpus(
    settings: Settings, task_runner: TaskRunner = "processes", scheduler: str | None = None
) -> tuple[CurationReport, ValidationReport]:
    """Curate, then validate; raise an error for a corpus that fails its expectations.

    Args:
        settings: of the run.
        task_runner: curate volumes in processes of this machine, or on a Dask cluster.
        scheduler: address of the Dask cluster; None = a temporary one on this machine.
    """
    with preparing(Home.open(), report_waiting):
        curation = curate_on_dask(settings, scheduler) if task_runner == "dask" else curate_volumes(settings)
        validation = validate_corpus()
        validation.require()
    return curation, validation


def preview_corpus(count: int) -> Path:
    """Write the page with samples of the curated corpus (``curated/preview.html``)."""
    home = Home.open()
    return write_preview(Corpus.open(home.curated), home.curated / "preview.html", count)
