"""Curated tables at the paper's scale: 224,194 generated volumes of 47,917 patients, 19 million slices.

python -m benchmarks.tables

Every step runs in a process of its own; memory is the peak resident size of that process, including libraries.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.curation.measure.volume_facts import SliceFacts
from components.curation.overview import overview
from components.curation.slice_table import BLOCK, SliceTable
from components.curation.splits import Patient, split_patients
from components.curation.table_rows import SplitRecord, VolumeRecord
from components.curation.tables import SPLITS, VOLUMES, read_arrow, read_table, write_table

VOLUMES_TOTAL, PATIENTS, SLICES, DATASETS = 224_194, 47_917, 19_000_000, 60
ANATOMIES = ("brain", "breast", "knee", "prostate", "heart", "liver", "spine")


def slice_counts() -> np.ndarray:
    """Return the number of slices of each volume: 16 to 153, 19 million in total."""
    counts = np.random.default_rng(0).integers(16, 154, VOLUMES_TOTAL)
    counts[: SLICES - int(counts.sum())] += 1 if counts.sum() < SLICES else 0
    return counts


def generate_records() -> Iterator[VolumeRecord]:
    """Generate the volume records."""
    counts = slice_counts()
    for number in range(VOLUMES_TOTAL):
        patient = number % PATIENTS
        folder = f"dataset-{patient % DATASETS:02d}/p{patient:012x}"
        yield VolumeRecord(
            volume_id=f"{number * 2654435761 % 2**32:08x}{number:024x}",
            dataset_id=f"dataset-{patient % DATASETS:02d}",
            patient_id=f"p{patient:012x}",
            series_id=f"s{number:012x}",
            split="train",
            synthetic=False,
            source_files=[f"{folder}/s{number:012x}.nii"],
            source_md5=f"{number:032x}",
            reader="nifti",
            slices=int(counts[number]),
            rows=256,
            columns=256,
            affine=[1.0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
            intensity_scale=900.0 + number % 100,
            voxel_minimum=0.0,
            voxel_maximum=1.7,
            voxel_deviation=0.3,
            finite=True,
            has_kspace=number % 5 == 0,
            has_labels=number % 2 == 0,
            label_values=[1, 2, 3] if number % 2 == 0 else [],
            modality="MR",
            sequence=("T1-weighted", "T2-weighted", "FLAIR", None)[number % 4],
            plane="axial",
            anatomy=ANATOMIES[patient % 7],
            repetition_time_ms=500.0 + number % 4000,
            echo_time_ms=10.0 + number % 90,
            inversion_time_ms=None,
            flip_angle_deg=90.0,
            field_strength_t=(1.5, 3.0)[number % 2],
            vendor=("Siemens", "GE", "Philips")[number % 3],
            scanner=None,
            sex=("F", "M")[number % 2],
            age_years=1.0 + number % 87,
            lesion=(True, False, None)[number % 3],
            content_md5=f"{number:032x}",
        )


def build(root: Path) -> int:
    """Build the tables of volumes and slices from records and facts, as curation does; return the number of slices."""
    root.mkdir(parents=True, exist_ok=True)
    write_table(root, VOLUMES, generate_records())
    names = read_arrow(root, VOLUMES, ["volume_id", "slices"])
    ids, counts = names.column(0).to_pylist(), names.column(1).to_pylist()
    facts = [
        SliceFacts(
            content_slices=list(range(2, n - 2)),
            structure_slices={},
            lesion_slices=list(range(5, 9)),
            lesion_free_slices=list(range(9, n - 2)),
        )
        for n in range(200)
    ]
    blocks = range(0, len(ids), BLOCK)
    tables = [
        SliceTable.from_facts((ids[k], counts[k], facts[counts[k]]) for k in range(b, min(b + BLOCK, len(ids)))) for b in blocks
    ]
    SliceTable.concatenate(tables).write(root)
    return sum(len(table) for table in tables)


def load(root: Path) -> int:
    """Read every volume as a validated record and every slice as columns, as a training process does."""
    volumes = {record.volume_id: record for record in read_table(root, VOLUMES)}
    return len(volumes) + len(SliceTable.read(root))


def filter_slices(root: Path) -> int:
    """Select the slices with content of T2-weighted knees at 3 T."""
    import pyarrow.compute as pc

    columns = ["volume_id", "anatomy", "sequence", "field_strength_t"]
    table = read_arrow(root, VOLUMES, columns)
    condition = pc.and_(
        pc.and_(pc.equal(table["anatomy"], "knee"), pc.equal(table["sequence"], "T2-weighted")),
        pc.equal(table["field_strength_t"], pa.scalar(3.0)),
    )
    volume_ids = table.filter(condition).column("volume_id").to_pylist()
    return len(SliceTable.read(root).take(volume_ids).with_content())


def split(root: Path) -> int:
    """Assign every patient to a split, stratified by lesions, and write the table."""
    columns = read_arrow(root, VOLUMES, ["patient_id", "dataset_id", "lesion"]).to_pydict()
    split_by_patient = split_patients((Patient(*row) for row in zip(*columns.values(), strict=True)), 0.15, 0.25, seed=0)
    write_table(root, SPLITS, (SplitRecord(patient_id=patient, split=split) for patient, split in split_by_patient.items()))
    return len(split_by_patient)


def summarize(root: Path) -> int:
    """Count patients, volumes and slices by dataset and split."""
    return sum(share.slices for share in overview(root))


STEPS: dict[str, Callable[[Path], int]] = {
    "build": build,
    "load": load,
    "filter": filter_slices,
    "split": split,
    "summary": summarize,
}


def main() -> None:
    """Measure every step and write ``results/tables.csv``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", choices=list(STEPS), help="run one step in this process (used by the benchmark itself)")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        started = time.perf_counter()
        rows = STEPS[arguments.step](arguments.folder)
        seconds = time.perf_counter() - started
        print(json.dumps([rows, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
        return
    from benchmarks.harness import write_rows

    measurements = []
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            completed = subprocess.run(
                [sys.executable, "-m", "benchmarks.tables", "--step", step, "--folder", folder],
                check=True,
                capture_output=True,
                text=True,
            )
            rows, seconds, mib = json.loads(completed.stdout)
            print(step, rows, f"{seconds:.2f} s, {mib:.0f} MiB", flush=True)
            measurements.append({"step": step, "rows": rows, "seconds": f"{seconds:.2f}", "peak_mib": f"{mib:.0f}"})
    write_rows("tables", measurements, f"pyarrow {pa.__version__}")


if __name__ == "__main__":
    main()
