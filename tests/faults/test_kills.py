"""Kill ingestion and curation (SIGKILL) at random moments: the next run completes with the same bytes as an undisturbed run."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from components.curation import curate
from components.ingestion import ingest
from components.settings import CurationSettings
from tests.helpers.datasets import KEY, tiny_card, tree, write_cohort, write_patient

PRELOADED = [
    "components.curation.curate_corpus",
    "components.ingestion.ingest_dataset",
    "components.ingestion.volume_reader",
    "tests.helpers.datasets",
]


def update(root: Path, workers: int) -> None:
    """Update data and corpus under ``root`` from its sources."""
    settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=workers)
    ingest(tiny_card(), root / "source", root / "data", KEY, workers)
    curate(root / "data", [tiny_card()], root / "curated", settings)


def update_with(environment: dict[str, str], root: Path, workers: int) -> None:
    """Update with an environment: the fork server has that of the test that started it, with its plugins perhaps."""
    os.environ.clear()
    os.environ.update(environment)
    update(root, workers)


def run_and_kill(root: Path, workers: int, after_s: float) -> bool:
    """Update in another process and kill it and its children after ``after_s`` seconds; return False if it finished before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=update_with, args=(dict(os.environ), root, workers))
    process.start()
    assert process.pid is not None
    process.join(after_s)
    if process.exitcode is not None:
        assert process.exitcode == 0
        return False
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in family:
        try:
            psutil.Process(pid).kill()
        except psutil.NoSuchProcess:
            continue
    process.join()
    return True


def check(tmp_path: Path, moments: int, patients: int, workers: int, change: Callable[[Path], None]) -> int:
    """Kill ``moments`` runs, each during the update of a changed corpus; return the number of runs that were interrupted."""
    start = tmp_path / "start"
    write_cohort(start / "source", patients)
    update(start, workers)
    change(start / "source")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(start, undisturbed)
    run_and_kill(undisturbed, workers, 0.0)  # the fork server loads its libraries, which must not count
    shutil.rmtree(undisturbed)
    shutil.copytree(start, undisturbed)
    start_s = time.monotonic()
    assert not run_and_kill(undisturbed, workers, 120)
    duration_s = time.monotonic() - start_s
    expected = {name: tree(undisturbed / name) for name in ("data", "curated")}
    rng, interrupted = random.Random(duration_s), 0
    for number in range(moments):
        root = tmp_path / f"killed-{number}"
        shutil.copytree(start, root)
        interrupted += run_and_kill(root, workers, rng.uniform(0, duration_s))
        update(root, 1)
        for name, files in expected.items():
            actual = tree(root / name)
            assert actual.keys() == files.keys()
            assert [path for path in files if actual[path] != files[path]] == []
        shutil.rmtree(root)
    return interrupted


def replace_patients(source: Path) -> None:
    """Remove one patient, change one, and add a third as many new ones."""
    existing = sorted(source.iterdir())
    shutil.rmtree(existing[1])
    write_patient(source, 0, seed=77)
    for number in range(len(existing), len(existing) + len(existing) // 3 + 1):
        write_patient(source, number)


def add_patients(source: Path) -> None:
    """Add forty patients, enough for ingestion and curation to start worker processes."""
    for number in range(100, 140):
        write_patient(source, number)


def remove_patients(source: Path) -> None:
    """Remove all patients but two."""
    for patient in sorted(source.iterdir())[2:]:
        shutil.rmtree(patient)


def test_two_kills_during_an_update(tmp_path: Path) -> None:
    check(tmp_path, moments=2, patients=6, workers=1, change=replace_patients)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_with_worker_processes(tmp_path: Path) -> None:
    assert check(tmp_path, moments=10, patients=4, workers=2, change=add_patients) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_kills_during_removal(tmp_path: Path) -> None:
    assert check(tmp_path, moments=10, patients=36, workers=1, change=remove_patients) >= 3
