"""One small ingestion of every sample, shared by the tests that only read it."""

from pathlib import Path

import pytest

from components.catalog import load_card
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.samples import build_sample
from tests.helpers.datasets import GENERATED, SAMPLES


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    for sample in SAMPLES:
        build_sample(load_card(sample), folder / sample, patients=2 if sample in GENERATED else None)
    return folder


@pytest.fixture(scope="session")
def data(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ingested") / "data"
    for sample in SAMPLES:
        ingest(load_card(sample), sources / sample, folder, DEMO_KEY)
    return folder
