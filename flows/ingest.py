"""Source folders -> de-identified files under ``data/`` -> a DVC version."""

from __future__ import annotations

from prefect import flow, task

from components.catalog import load_card
from components.home import Home
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import load_key
from components.ingestion.volume import IngestReport
from components.settings import DatasetSettings, IngestionSettings
from components.versioning import DataRepository, DataVersion
from components.versioning.source_state import source_folder
from flows.artifacts import publish_data_version
from flows.reporting import report_waiting, report_warning, reported_step
from flows.retries import STEP
from flows.steps import changes, changing, dataset_inputs, manifest_path, preparing, record_step


@task(task_run_name="read {dataset.card}", **STEP)
def ingest_dataset(dataset: DatasetSettings, settings: IngestionSettings) -> IngestReport:
    """Read, de-identify and quarantine one dataset; build the sample dataset if the profile names no folder."""
    home, name = Home.open(), f"read {dataset.card}"
    source = source_folder(dataset, home)
    with reported_step(name) as step:
        if dataset.path is None:
            from components.samples import build_sample

            build_sample(load_card(dataset.card), source, dataset.patients)
        key = load_key(settings, home)
        inputs = dataset_inputs(dataset, settings, home).by_name()
        with changing(home, not changes(home, name, inputs), report_waiting):
            report = ingest(load_card(dataset.card), source, home.data, key, workers=settings.workers)
            record_step(home, name, inputs, manifest_path(dataset, home))
        step.result = (
            f"{report.series} series of {report.patients} patients, {report.files_new} files new, {report.files_reused} reused, "
            f"{len(report.quarantined)} in quarantine"
        )
    return report


@task(name="version data", **STEP)
def version_data() -> DataVersion:
    """Pin ``data/`` in ``data.dvc`` and push it to the default remote."""
    home = Home.open()
    repository = DataRepository(home.data.parent, home.data)
    previous = repository.digest() if repository.pin.exists() else None
    with reported_step("version data") as step:
        version = repository.snapshot()
        step.result = f"{version.digest[:12]}, {version.files} files"
    if version.changed and previous is not None:
        if repository.has_version(previous):
            publish_data_version(version, repository.diff(previous))
        else:
            report_warning(f"data.dvc named version {previous[:12]}, which this machine does not have: no differences are listed")
    return version


@flow(name="ingest", flow_run_name="ingest")
def ingest_datasets(
    datasets: tuple[DatasetSettings, ...], settings: IngestionSettings
) -> tuple[tuple[IngestReport, ...], DataVersion]:
    """Ingest every dataset, then version them together."""
    with preparing(Home.open(), report_waiting):
        reports = tuple(ingest_dataset(dataset, settings) for dataset in datasets)
        return reports, version_data()
