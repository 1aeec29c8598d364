"""De-identified files -> volume store and tables -> Great Expectations gate."""

from __future__ import annotations

from pathlib import Path

from prefect import flow, get_run_logger, task

from components.catalog import load_card
from components.curation import curate
from components.curation.corpus import Corpus
from components.curation.preview import write_preview
from components.curation.records import CurationReport
from components.home import Home
from components.settings import Settings
from components.validation import ValidationReport, validate


@task(name="curate")
def curate_volumes(settings: Settings) -> CurationReport:
    """Bring the corpus up to date with ``data/``; unchanged volumes are left alone."""
    home = Home.open()
    cards = [load_card(dataset.card) for dataset in settings.datasets]
    report = curate(home.data, cards, home.curated, settings.curation)
    get_run_logger().info(
        "%d volumes (%d new, %d reused, %d removed), %d descriptions, %d instructions",
        report.volumes_total, report.volumes_new, report.volumes_reused, report.volumes_removed,
        report.descriptions, report.instructions,
    )  # fmt: skip
    return report


@task(name="validate")
def validate_corpus() -> ValidationReport:
    """Hold every table against its expectations and write the Data Docs."""
    home = Home.open()
    report = validate(home.curated, home.validation)
    get_run_logger().info("validation %s: %s", "passed" if report.passed else "FAILED", report.data_docs)
    return report


@flow(name="curate")
def curate_corpus(settings: Settings) -> tuple[CurationReport, ValidationReport]:
    """Curate, then validate; a corpus that fails its expectations stops here."""
    curation = curate_volumes(settings)
    validation = validate_corpus()
    validation.require()
    return curation, validation


def preview_corpus(count: int) -> Path:
    """Write the page with samples of what was curated (``curated/preview.html``)."""
    home = Home.open()
    return write_preview(Corpus.open(home.curated), home.curated / "preview.html", count)
