"""What it costs to bring a curated corpus up to date when nothing, or one volume in a hundred, has changed.

python -m benchmarks.recuration [--volumes 2000] [--folder FOLDER]

Every curation runs in a process of its own; ``curate_s`` is the call, ``process_s`` with the start of Python and the libraries.
The peer of each is the full curation of the same corpus from nothing.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmarks.harness import RESULTS, machine, versions
from components.catalog import load_card
from components.settings import CurationSettings

KEY = b"the benchmark's own key, 32 bytes"
SETTINGS = CurationSettings(matrix=160, pixel_mm=1.4, workers=2)
CARD = "synthetic-brain-nifti"


def write_sources(folder: Path, volumes: int) -> None:
    """So many patients, a T1 of 24 x 192 x 192 and its label map each: eight synthetic brains, mirrored, each with its noise."""
    from components.samples.cohort import Grid, brain, magnitude

    grid = Grid(slices=24, pixels=192, slice_mm=5.0, pixel_mm=1.2)
    brains = [brain(number, grid, cohort=7) for number in range(8)]
    affine = grid.affine[:, [2, 1, 0, 3]]
    for number in range(volumes):
        one, flip = brains[number % 8], -1 if number % 3 == 0 else 1
        image = magnitude(one.images["T1-weighted"], number, "T1-weighted")[:, :, ::flip]
        for kind, values in (("T1w", image.astype(np.int16)), ("dseg", one.labels[:, :, ::flip])):
            path = folder / f"sub-{number:05d}" / "anat" / f"sub-{number:05d}_{kind}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine), path)


def ingest_all(root: Path) -> None:
    """Bring ``data/`` up to date."""
    from components.ingestion import ingest

    ingest(load_card(CARD), root / "source", root / "data", KEY, workers=2)


def curate_here(root: Path, out: str) -> None:
    """Curate in this process and print what it cost."""
    from components.curation import curate

    started = time.perf_counter()
    report = curate(root / "data", [load_card(CARD)], root / out, SETTINGS)
    seconds = time.perf_counter() - started
    counts = {"new": report.volumes_new, "total": report.volumes_total, "removed": report.volumes_removed}
    print(json.dumps({"curate_s": seconds, **counts, "instructions": report.instructions, "digest": report.digest}))


def timed(root: Path, out: str = "curated") -> dict[str, float]:
    """One curation in a new process."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "benchmarks.recuration", "--curate", out, "--folder", str(root)],
                          check=True, capture_output=True, text=True)  # fmt: skip
    return {**json.loads(done.stdout), "process_s": time.perf_counter() - started}


def changes(root: Path, share: int) -> Iterator[str]:
    """Change the sources, one kind of change after the other, and name each: one volume in a hundred."""
    source = root / "source"
    some = sorted(source.iterdir())[5::100][:share]
    yield "nothing"
    for place, patient in enumerate(some):
        image = next(patient.rglob("*_T1w.nii"))
        content = bytearray(image.read_bytes())
        content[-20_000 - place] ^= 1
        image.write_bytes(content)
    yield "1 % changed"
    for patient in some:
        for path in patient.rglob("*.nii"):
            path.rename(path.with_name(path.name.replace("sub-", "sub-9")))
        patient.rename(patient.with_name(patient.name.replace("sub-", "sub-9")))
    yield "1 % renamed"
    renamed = [patient for patient in source.iterdir() if patient.name.startswith("sub-9")]
    for patient in renamed:
        shutil.move(patient, root / "aside" / patient.name)
    yield "1 % removed"
    for patient in (root / "aside").iterdir():
        shutil.move(patient, source / patient.name)
    yield "1 % new"


def run(root: Path, volumes: int) -> None:
    """Measure and write ``results/recuration.csv``."""
    if not (root / "source").exists():
        write_sources(root / "source", volumes)
    shutil.rmtree(root / "curated", ignore_errors=True)
    (root / "aside").mkdir(exist_ok=True)
    ingest_all(root)
    full = timed(root)
    rows = [{"change": "full", **full}]
    for name in changes(root, volumes // 100):
        ingest_all(root)
        rows.append({"change": name, **timed(root)})
        print(name, rows[-1], flush=True)
    fields = ["change", "total", "new", "removed", "instructions", "curate_s", "process_s", "share_of_full",
              "share_of_full_process", "machine", "versions"]  # fmt: skip
    with (RESULTS / "recuration.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for row in rows:
            shares = {"share_of_full": f"{row['curate_s'] / full['curate_s']:.4f}",
                      "share_of_full_process": f"{row['process_s'] / full['process_s']:.4f}"}  # fmt: skip
            seconds = {name: f"{row[name]:.3f}" for name in ("curate_s", "process_s")}
            writer.writerow({**row, **seconds, **shares, "machine": machine("cpu"), "versions": versions()})


def main() -> None:
    """Measure everything, or one step of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=2000)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "omnimri-recuration", help="kept for a second run"
    )
    parser.add_argument("--prepare", action="store_true", help="write and ingest the sources only")
    parser.add_argument(
        "--curate", help="curate into this folder of --folder and print what it cost (used by the benchmark itself)"
    )
    arguments = parser.parse_args()
    if arguments.curate:
        curate_here(arguments.folder, arguments.curate)
    elif arguments.prepare:
        write_sources(arguments.folder / "source", arguments.volumes)
        ingest_all(arguments.folder)
    else:
        run(arguments.folder, arguments.volumes)


if __name__ == "__main__":
    main()
