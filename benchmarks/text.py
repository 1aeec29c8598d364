"""Text curation without a vision-language model: descriptions and instructions of curated volumes, on two cores.

Target: at least 200 volumes per second on two cores at the size of the demo. ``measured`` starts from voxels and labels in memory
(cost of the first curation of a volume), ``from facts`` from stored measurements (cost after a change of a phrasing, a rule or a
split). The peer makes one pass over the volume for every label and quantity. All alternate; the median round counts.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy
from scipy import ndimage

from benchmarks.harness import versions, write_rows
from components.curation.curate_volume import CardFacts, CuratedVolume, curate_volume
from components.curation.measure.volume_facts import compute_slice_facts
from components.curation.store import VolumeStore
from components.curation.table_rows import VolumeRecord
from components.curation.text.descriptions import describe
from components.curation.text.instructions import list_candidates
from components.ingestion.volume import Volume
from components.settings import CurationSettings
from tests.helpers.corpora import card, tiny_series, tiny_volume

SECONDS, ROUNDS, WORKERS = 1.2, 5, 2
SIZES = ((20, 96), (96, 96), (20, 256))
"""(Slices, pixels per side): a generated volume of the demo, an isotropic one, a clinical one."""


@cache
def _prepare(slices: int, side: int) -> tuple[VolumeRecord, CuratedVolume, np.ndarray, np.ndarray, np.ndarray]:
    import tempfile

    volume = tiny_volume(0, "T2-weighted", lesion=True, matrix=side)
    indices = np.linspace(0, len(volume.voxels) - 1, slices).round().astype(int)
    assert volume.labels is not None
    voxels, labels = np.ascontiguousarray(volume.voxels[indices]), np.ascontiguousarray(volume.labels[indices])
    resized = type(volume)(voxels, volume.affine, volume.acquisition, labels=labels)
    settings = CurationSettings(matrix=side, pixel_mm=216 / side)
    with tempfile.TemporaryDirectory() as folder:
        curated = curate_volume("0" * 32, resized, tiny_series("a", "p" + "0" * 12), card(), settings, VolumeStore(Path(folder)))
    return curated.record, curated, voxels / 900, labels, np.asarray(curated.record.affine).reshape(4, 4)


def _count_instructions(curated: CuratedVolume, facts: CardFacts, settings: CurationSettings) -> int:
    return len(list_candidates(curated, facts, settings))


def compute_from_voxels(slices: int, side: int) -> None:
    """Compute facts, description and instructions of one volume in memory."""
    record, curated, voxels, labels, affine = _prepare(slices, side)
    volume = source_volume(side)
    facts = compute_slice_facts(volume, voxels, labels, {}, card().label_map, affine)
    described = describe(record.volume_id, volume.acquisition, "brain", "", facts, record.lesion)
    _count_instructions(curated.model_copy(update={"facts": facts, "description": described}), card(), CurationSettings())


def compute_from_facts(slices: int, side: int) -> None:
    """Compute description and instructions of one volume from stored facts."""
    record, curated, *_ = _prepare(slices, side)
    described = describe(record.volume_id, source_volume(side).acquisition, "brain", "", curated.facts, record.lesion)
    _count_instructions(curated.model_copy(update={"description": described}), card(), CurationSettings())


@cache
def source_volume(side: int) -> Volume:
    """Return the source volume, for its header."""
    return tiny_volume(0, "T2-weighted", lesion=True, matrix=side)


def compute_with_a_pass_for_each_label(slices: int, side: int) -> None:
    """Compute the same quantities as the peer does: one pass over the whole volume for each label and quantity; no text."""
    _, _, voxels, labels, affine = _prepare(slices, side)
    for value in np.unique(labels)[1:]:
        mask = labels == value
        np.median(voxels[mask])
        np.argwhere(mask).mean(axis=0) @ affine[:3, :3].T
        [int(np.count_nonzero(labels[index] == value)) for index in range(len(labels))]
    regions, _ = ndimage.label(labels == 4, structure=np.ones((3, 3, 3)))
    np.bincount(regions.ravel())


def _repeat(call: Callable[[int, int], None], slices: int, side: int, seconds: float) -> tuple[int, float]:
    call(slices, side)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        call(slices, side)
        count += 1
    return count, time.perf_counter() - started


def measure_rate(pool: ProcessPoolExecutor, call: Callable[[int, int], None], slices: int, side: int) -> float:
    """Return the volumes per second of :data:`WORKERS` processes with one thread each."""
    results = list(pool.map(partial(_repeat, call, slices, side), [SECONDS] * WORKERS))
    return sum(count / seconds for count, seconds in results)


def main() -> None:
    """Measure every size and write ``results/text.csv``."""
    rows = []
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited by the worker processes
    variants = (
        ("measured", compute_from_voxels),
        ("from facts", compute_from_facts),
        ("a pass for each label", compute_with_a_pass_for_each_label),
    )
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
        for slices, side in SIZES:
            rounds = [[measure_rate(pool, call, slices, side) for _, call in variants] for _ in range(ROUNDS)]
            for (name, _), rates in zip(variants, zip(*rounds, strict=True), strict=True):
                rows.append(
                    {
                        "volume": f"{slices} x {side} x {side}",
                        "text": name,
                        "volumes_per_s": f"{statistics.median(rates):.0f}",
                        "lowest": f"{min(rates):.0f}",
                        "highest": f"{max(rates):.0f}",
                        "processes": WORKERS,
                    }
                )
                print(rows[-1]["volume"], name, rows[-1]["volumes_per_s"], flush=True)
    write_rows("text", rows, f"numpy {np.__version__}, scipy {scipy.__version__}, {versions()}")


if __name__ == "__main__":
    main()
