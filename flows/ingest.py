"""Source folders -> de-identified files under ``data/`` -> a DVC version."""

from __future__ import annotations

from contextlib import AbstractContextManager

from prefect import flow, task

from components.catalog import DatasetCard, load_card
from components.home import Home
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import load_key
from components.ingestion.volume import IngestReport
from components.pacs.source import PacsSource, find_source
from components.settings import DatasetSettings, IngestionSettings, PacsSettings
from components.versioning import DataRepository, DataVersion
from components.versioning.source_state import source_folder
from flows.artifacts import publish_data_version
from flows.pacs_credentials import find_credentials
from flows.reporting import report_waiting, report_warning, reported_step
from flows.retries import STEP
from flows.steps import changes, changing, dataset_inputs, manifest_path, preparing, record_step


@task(task_run_name="read {dataset.card}", **STEP)
def ingest_dataset(dataset: DatasetSettings, settings: IngestionSettings, pacs: PacsSettings) -> IngestReport:
    """Read, de-identify and quarantine one dataset, from its folder or its server; build the sample dataset if it names neither."""
    home, name, card = Home.open(), f"read {dataset.card}", load_card(dataset.card)
    archive = find_source(dataset, card, pacs)
    source = source_folder(dataset, home)
    with reported_step(name) as step:
        if archive is not None:
            report = _fetch(dataset, card, archive, settings, pacs)
            step.result = f"{report.series} series of {report.patients} patients, {report.files_new} files new"
            return report
        if dataset.path is None:
            from components.samples import build_sample

            build_sample(card, source, dataset.patients)
        key = load_key(settings, home)
        inputs = dataset_inputs(dataset, settings, home).by_name()
        with changing(home, not changes(home, name, inputs), report_waiting):
            report = ingest(card, source, home.data, key, workers=settings.workers)
            record_step(home, name, inputs, manifest_path(dataset, home))
        step.result = (
            f"{report.series} series of {report.patients} patients, {report.files_new} files new, {report.files_reused} reused, "
            f"{len(report.quarantined)} in quarantine"
        )
    return report


def _fetch(
    dataset: DatasetSettings, card: DatasetCard, source: PacsSource, settings: IngestionSettings, pacs: PacsSettings
) -> IngestReport:
    """Fetch and ingest what is new on a server. ``data/`` is locked while a batch is ingested, not while it is fetched."""
    from components.pacs.archive import open_archive
    from components.pacs.update import DatasetUpdate, update_from_archive

    home, name = Home.open(), f"read {dataset.card}"

    def committing() -> AbstractContextManager[None]:
        return changing(home, False, report_waiting)

    update = DatasetUpdate(card, home, load_key(settings, home), settings.workers, committing)
    report = update_from_archive(update, source, open_archive(source.server, find_credentials), pacs)
    record_step(home, name, dataset_inputs(dataset, settings, home).by_name(), manifest_path(dataset, home))
    for notice in report.notices:
        report_warning(f"{dataset.card}: {notice.count} {notice.text}")
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
    datasets: tuple[DatasetSettings, ...], settings: IngestionSettings, pacs: PacsSettings
) -> tuple[tuple[IngestReport, ...], DataVersion]:
    """Ingest every dataset, then version them together."""
    with preparing(Home.open(), report_waiting):
        reports = tuple(ingest_dataset(dataset, settings, pacs) for dataset in datasets)
        return reports, version_data()
