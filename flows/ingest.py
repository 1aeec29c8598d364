"""Source folders -> de-identified files under ``data/`` -> a DVC version."""

from __future__ import annotations

from prefect import flow, get_run_logger, task

from components.catalog import load_card
from components.home import Home
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import load_key
from components.ingestion.volume import IngestReport
from components.settings import DatasetSettings, IngestionSettings
from components.versioning import DataRepository, DataVersion
from components.versioning.source_state import source_folder
from flows.artifacts import tell_data_version
from flows.retries import STEP
from flows.steps import manifest, read_inputs, remember, writing


@task(task_run_name="read {dataset.card}", **STEP)
def ingest_dataset(dataset: DatasetSettings, settings: IngestionSettings) -> IngestReport:
    """Read, de-identify and quarantine one dataset; builds the sample if the profile names no folder."""
    home = Home.open()
    source = source_folder(dataset, home)
    if dataset.path is None:
        from components.samples import build_sample

        build_sample(dataset.card, source)
    card, key = load_card(dataset.card), load_key(settings, home)
    inputs = read_inputs(dataset, settings, home)
    report = ingest(card, source, home.data, key, workers=settings.workers)
    remember(home, f"read {dataset.card}", inputs, manifest(dataset, home))
    get_run_logger().info(
        "%s: %d series of %d patients, %d files new, %d reused, %d in quarantine",
        dataset.card,
        report.series,
        report.patients,
        report.files_new,
        report.files_reused,
        len(report.quarantined),
    )
    return report


@task(name="version data", **STEP)
def version_data() -> DataVersion:
    """Pin ``data/`` in ``data.dvc`` and push it to the default remote."""
    home = Home.open()
    repository = DataRepository(home.data.parent, home.data)
    before = repository.digest() if repository.pin.exists() else None
    version = repository.snapshot()
    if version.changed and before is not None:
        if repository.has(before):
            tell_data_version(version, repository.diff(before))
        else:
            get_run_logger().warning(
                "data.dvc named version %s, which this machine does not have: its differences cannot be listed", before[:12]
            )
    get_run_logger().info("data version %s: %d files", version.digest[:12], version.files)
    return version


@flow(name="ingest", flow_run_name="ingest")
def ingest_datasets(
    datasets: tuple[DatasetSettings, ...], settings: IngestionSettings
) -> tuple[tuple[IngestReport, ...], DataVersion]:
    """Ingest every dataset, then version them together."""
    with writing(Home.open(), waiting=get_run_logger().info):
        reports = tuple(ingest_dataset(dataset, settings) for dataset in datasets)
        return reports, version_data()
