"""``omnimri data``: messages and JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from components.curation import curate
from components.errors import BadInput, JobFailed
from components.ingestion import ingest
from components.settings import CurationSettings
from components.versioning import DataRepository
from components.versioning.dvc_store import open_dvc
from flows.cli.data import app
from tests.helpers.datasets import KEY, tiny_card, write_cohort, write_patient


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a versioned, curated dataset of four patients, whose key the home has."""
    monkeypatch.setenv("OMNIMRI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMNIMRI_DATA", str(tmp_path / "data"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "pseudonym.key").write_bytes(KEY)
    ingest(tiny_card(), write_cohort(tmp_path / "source", 4), tmp_path / "data", KEY)
    DataRepository(tmp_path, tmp_path / "data").snapshot()
    settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=1)
    curate(tmp_path / "data", [tiny_card()], tmp_path / "home" / "curated", settings)
    return tmp_path


def output_of(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=True)
    if done.exception is not None:
        raise done.exception
    return " ".join(done.output.split())


def test_status_diff_and_push_report_changes(root: Path) -> None:
    assert "unchanged, and is in the remote" in output_of("status")
    write_patient(root / "source", 4)
    ingest(tiny_card(), root / "source", root / "data", KEY)
    assert "has changed since version" in output_of("status")
    [dataset] = json.loads(output_of("diff", "--json"))["datasets"]
    assert len(dataset["patients_new"]) == len(dataset["series_new"]) == 1
    assert "data.dvc names a new version" in output_of("push")
    assert output_of("diff") == "no difference"


def test_a_patient_is_withdrawn_by_the_id_in_the_source(root: Path) -> None:
    answer = json.loads(output_of("withdraw", "sub-02", "--json"))
    assert answer["removed"] == {"series": 1, "files": 3} and len(answer["versions"]) == 1
    assert list(answer["patients"]) == [tiny_card().id]
    assert "sub-02" not in json.dumps(answer)
    assert "series of withdrawn patients excluded" in output_of("checkout", answer["versions"][0], "--to", str(root / "old"))
    with pytest.raises(BadInput, match="no such patient") as refused:
        output_of("withdraw", "Doe^Jane")
    assert "Jane" not in str(refused.value)


def test_a_patient_is_not_called_unknown_while_a_remote_cannot_be_read(root: Path) -> None:
    with open_dvc(root, "data") as dvc, dvc.config.edit() as config:
        config["remote"]["away"] = {"url": str(root / "unmounted")}
    with pytest.raises(JobFailed, match="remote away: not readable"):
        output_of("withdraw", "Doe^Jane")


def test_a_damaged_slice_is_named(root: Path) -> None:
    assert "intact" in output_of("verify")
    file = next((root / "home" / "curated").rglob("*.voxels.b2nd"))
    shutil.copy(next((root / "home" / "curated").rglob("*.labels.b2nd")), file)
    with pytest.raises(JobFailed, match="1 faults"):
        output_of("verify")
    assert "1 volumes removed" in output_of("verify", "--repair") and not file.exists()


def test_the_summary_counts_slices(root: Path) -> None:
    shares = json.loads(output_of("summary", "--json"))["shares"]
    assert sum(share["slices"] for share in shares) == 4 * 8
