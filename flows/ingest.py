"""Source folders -> de-identified files under ``data/`` -> a DVC version."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from components.catalog import load_card
from components.home import Home
from components.ingestion import ingest
from components.ingestion.keys import load_key
from components.ingestion.volume import IngestReport
from components.settings import DatasetSettings, IngestionSettings
from components.versioning import DataRepository, DataVersion


@task(task_run_name="read {dataset.card}")
def ingest_dataset(dataset: DatasetSettings, settings: IngestionSettings) -> IngestReport:
    """Read, de-identify and quarantine one dataset; builds the sample if the profile names no folder."""
    home = Home.open()
    source: Path
    if dataset.path is None:
        from components.samples import build

        source = build(dataset.card, home.sources / dataset.card)
    else:
        source = dataset.path
    card = load_card(dataset.card)
    report = ingest(card, source, home.data, load_key(settings, home), workers=settings.workers)
    get_run_logger().info(
        "%s: %d series of %d patients, %d files new, %d reused, %d in quarantine",
        dataset.card, report.series, report.patients, report.files_new, report.files_reused, len(report.quarantined),
    )  # fmt: skip
    return report


@task(name="version data")
def version_data() -> DataVersion:
    """Pin ``data/`` in ``data.dvc`` and push it to the default remote."""
    home = Home.open()
    version = DataRepository(home.data.parent, home.data).snapshot()
    get_run_logger().info("data version %s: %d files", version.digest[:12], version.files)
    return version


@flow(name="ingest")
def ingest_datasets(
    datasets: tuple[DatasetSettings, ...], settings: IngestionSettings
) -> tuple[tuple[IngestReport, ...], DataVersion]:
    """Ingest every dataset, then version them together."""
    reports = tuple(ingest_dataset(dataset, settings) for dataset in datasets)
    return reports, version_data()
