"""kill -9 of ingest and curate at random moments: the next run completes, to the byte as if nobody had disturbed it."""

from __future__ import annotations

import multiprocessing
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


def follow(root: Path, workers: int) -> None:
    """Bring data and corpus under ``root`` up to date with its sources."""
    settings = CurationSettings(matrix=32, pixel_mm=6.75, slices_per_volume=2, workers=workers)
    ingest(tiny_card(), root / "source", root / "data", KEY, workers)
    curate(root / "data", [tiny_card()], root / "curated", settings)


def killed(root: Path, workers: int, after_s: float) -> bool:
    """Follow in another process and kill it and its children after so many seconds; False where it was done by then."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=follow, args=(root, workers))
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
    """Kill so many runs, each over a corpus that has a change to follow; returns how many were caught at work."""
    start = tmp_path / "start"
    write_cohort(start / "source", patients)
    follow(start, workers)
    change(start / "source")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(start, undisturbed)
    killed(undisturbed, workers, 0.0)  # the server of processes loads its libraries: not to be counted
    shutil.rmtree(undisturbed)
    shutil.copytree(start, undisturbed)
    began = time.monotonic()
    assert not killed(undisturbed, workers, 120)
    whole_s = time.monotonic() - began
    truth = {name: tree(undisturbed / name) for name in ("data", "curated")}
    rng, caught = random.Random(whole_s), 0
    for number in range(moments):
        root = tmp_path / f"killed-{number}"
        shutil.copytree(start, root)
        caught += killed(root, workers, rng.uniform(0, whole_s))
        follow(root, 1)
        for name, files in truth.items():
            found = tree(root / name)
            assert found.keys() == files.keys()
            assert [path for path in files if found[path] != files[path]] == []
        shutil.rmtree(root)
    return caught


def updated(source: Path) -> None:
    """One patient gone, one changed, a third of the rest new."""
    there = sorted(source.iterdir())
    shutil.rmtree(there[1])
    write_patient(source, 0, seed=77)
    for number in range(len(there), len(there) + len(there) // 3 + 1):
        write_patient(source, number)


def grown(source: Path) -> None:
    """Forty more: so many that ingestion and curation start processes."""
    for number in range(100, 140):
        write_patient(source, number)


def emptied(source: Path) -> None:
    """Almost everything gone."""
    for patient in sorted(source.iterdir())[2:]:
        shutil.rmtree(patient)


def test_killed_twice_while_it_follows_a_change(tmp_path: Path) -> None:
    check(tmp_path, moments=2, patients=6, workers=1, change=updated)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times_with_processes_of_its_own(tmp_path: Path) -> None:
    assert check(tmp_path, moments=10, patients=4, workers=2, change=grown) >= 5


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_ten_times_while_it_removes(tmp_path: Path) -> None:
    assert check(tmp_path, moments=10, patients=36, workers=1, change=emptied) >= 3
