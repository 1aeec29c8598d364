"""An interrupted ingestion resumes, and ends with the same bytes as an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.catalog import load_card
from components.ingestion import ingest
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.manifest import JOURNAL
from tests.helpers.workers import start_at_once

SLOW_INGESTION = """
import sys, time
from pathlib import Path
from components.catalog import load_card
from components.ingestion import ingest
from components.ingestion import cleaning
from components.ingestion.deidentification.pseudonyms import DEMO_KEY

clean = cleaning.clean_file
def slow(*arguments, **more):
    time.sleep(0.02)
    return clean(*arguments, **more)
cleaning.clean_file = slow
ingest(load_card(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), DEMO_KEY)
"""
"""Ingestion with a pause at each file, so that it can be killed in between."""


def _checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("after", [1, 40])
def test_after_a_kill_the_rest_is_ingested_and_the_bytes_are_equal(sources: Path, data: Path, tmp_path: Path, after: int) -> None:
    name = "synthetic-brain-dicom"
    command = [sys.executable, "-c", SLOW_INGESTION, name, str(sources / name), str(tmp_path)]
    started = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])})
    journal = tmp_path / name / JOURNAL
    deadline = time.monotonic() + 1000
    while (
        (not journal.exists() or journal.read_text().count("\n") < after) and started.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    done = journal.read_text().count("\n")
    with journal.open("a") as stream:
        stream.write('{"recipe": "half a li')  # the result of a kill in the middle of a line
    (tmp_path / name / ".x.dcm.1234.tmp").write_text("half a file")
    report = ingest(load_card(name), sources / name, tmp_path, DEMO_KEY)
    assert after <= done <= report.files_reused + 1 and report.files_new > 0
    assert _checksums(tmp_path / name) == _checksums(data / name)


def test_worker_processes_write_the_same_bytes_as_one_process(
    sources: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_at_once(monkeypatch)
    name = "synthetic-brain-dicom"
    ingest(load_card(name), sources / name, tmp_path, DEMO_KEY, workers=2)
    assert _checksums(tmp_path / name) == _checksums(data / name)


def test_a_file_that_was_truncated_or_deleted_under_data_is_written_again(sources: Path, data: Path, tmp_path: Path) -> None:
    name = "synthetic-brain-nifti"
    ingest(load_card(name), sources / name, tmp_path, DEMO_KEY)
    files = sorted(tmp_path.rglob("*.nii"))
    files[0].write_bytes(files[0].read_bytes()[:-10])
    files[1].unlink()
    assert ingest(load_card(name), sources / name, tmp_path, DEMO_KEY).files_new == 2
    assert _checksums(tmp_path / name) == _checksums(data / name)


def test_the_manifest_lists_the_source_of_every_file(data: Path) -> None:
    for path in data.glob("*/manifest.json"):
        manifest = json.loads(path.read_text())
        files = {
            file["path"] for series in manifest["series"] for role in ("files", "labels", "annotations") for file in series[role]
        }
        assert files == set(manifest["sources"]) and set(manifest["contents"]) <= files
        assert {file.relative_to(data).as_posix() for file in path.parent.rglob("*") if file.is_file()} == files | {
            f"{path.parent.name}/manifest.json",
            f"{path.parent.name}/quarantine.json",
        }
