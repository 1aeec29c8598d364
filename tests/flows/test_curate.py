"""Curation on a Dask cluster writes the same bytes as curation in processes of this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.curation import curate
from components.ingestion import ingest
from components.settings import CurationSettings, DatasetSettings, Settings, load_settings
from flows.curate import curate_on_dask
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Twenty volumes, more than one batch, ingested; two workers."""
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    ingest(tiny_card(), write_cohort(tmp_path / "source", 20), tmp_path / "data", KEY)
    curation = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=2)
    return load_settings("debug").model_copy(update={"datasets": (DatasetSettings(card=tiny_card().id),), "curation": curation})


def test_a_dask_cluster_curates_the_same_corpus_once(server: str, settings: Settings, tmp_path: Path) -> None:
    report = curate_on_dask(settings, None)
    assert report.volumes_new == 20
    curate(tmp_path / "data", [tiny_card()], tmp_path / "here", settings.curation)
    assert tree(tmp_path / "home" / "curated") == tree(tmp_path / "here")
    assert curate_on_dask(settings, None).volumes_new == 0


def test_a_volume_that_a_worker_cannot_read_is_left_out_by_name(server: str, settings: Settings, tmp_path: Path) -> None:
    broken = next((tmp_path / "data").rglob("*.nii"))
    broken.write_bytes(b"no image")
    report = curate_on_dask(settings, None)
    assert report.volumes_unreadable == 1
