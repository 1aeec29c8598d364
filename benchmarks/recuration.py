"""Cost of updating a curated corpus when nothing, or one volume in a hundred, has changed.

python -m benchmarks.recuration --prepare [--volumes 2000] [--folder FOLDER]
python -m benchmarks.recuration [--folder FOLDER]

Every curation runs in a process of its own; ``curate_s`` is the time of the call, ``process_s`` includes the start of Python and
imports. The reference is the full curation of the same corpus into an empty folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from benchmarks.harness import versions, write_rows
from components.catalog import load_card
from components.files import read_json, write_json
from components.provenance import file_md5
from components.settings import CurationSettings

KEY = b"the benchmark's own key, 32 bytes"
SETTINGS = CurationSettings(matrix=160, pixel_mm=1.4, workers=2)
CARD = "synthetic-brain-nifti"


def write_sources(folder: Path, volumes: int) -> None:
    """Write a T1 of 24 x 192 x 192 and its label map for each patient: eight brains, some mirrored, with individual noise."""
    from components.samples.anatomies.brain import BRAIN, CENTER_MM
    from components.samples.phantom import Grid, generate_patient

    grid = Grid(slices=24, pixels=192, slice_mm=5.0, pixel_mm=1.2, center_mm=CENTER_MM)
    brains = [generate_patient(BRAIN, number, grid, (7,), 0.5) for number in range(8)]
    affine = grid.affine[:, [2, 1, 0, 3]]
    for number in range(volumes):
        brain, flip = brains[number % 8], -1 if number % 3 == 0 else 1
        image = replace(brain, seed=(7, number)).simulate_magnitude("T1-weighted")[:, :, ::flip]
        for kind, values in (("T1w", image.astype(np.int16)), ("dseg", brain.labels[:, :, ::flip])):
            path = folder / f"sub-{number:05d}" / "anat" / f"sub-{number:05d}_{kind}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine), path)


def ingest_all(root: Path) -> None:
    """Ingest the sources into ``data/``."""
    from components.ingestion import ingest

    ingest(load_card(CARD), root / "source", root / "data", KEY, workers=2)


def curate_here(root: Path, out: str) -> None:
    """Curate in this process and print time and counts as JSON."""
    from components.curation import curate

    started = time.perf_counter()
    report = curate(root / "data", [load_card(CARD)], root / out, SETTINGS)
    seconds = time.perf_counter() - started
    counts = {"new": report.volumes_new, "total": report.volumes_total, "removed": report.volumes_removed}
    print(json.dumps({"curate_s": seconds, **counts, "instructions": report.instructions, "digest": report.digest}))


def time_curation(root: Path, out: str = "curated") -> dict[str, float]:
    """Curate in a new process and return its times and counts."""
    started = time.perf_counter()
    completed = subprocess.run(
        [sys.executable, "-m", "benchmarks.recuration", "--curate", out, "--folder", str(root)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {**json.loads(completed.stdout), "process_s": time.perf_counter() - started}


def apply_changes(root: Path, count: int) -> Iterator[str]:
    """Change one volume in a hundred under ``data/`` as ingestion would, one kind at a time; yield the name of each kind."""
    manifest = root / "data" / CARD / "manifest.json"
    content = read_json(manifest)
    series = content["series"]
    selected = series[5::100][:count]
    yield "nothing"
    for offset, entry in enumerate(selected):
        path = root / "data" / entry["files"][0]["path"]
        data = bytearray(path.read_bytes())
        data[-20_000 - offset] ^= 1
        path.write_bytes(data)
        entry["files"][0]["md5"] = entry["md5"] = file_md5(path)
    write_json(manifest, content)
    yield "1 % changed"
    for entry in selected:
        for kind in ("files", "labels", "annotations"):
            for file in entry[kind]:
                path = root / "data" / file["path"]
                file["path"] = file["path"].replace(entry["series_id"], f"{entry['series_id']}r")
                if path.exists():
                    path.rename(root / "data" / file["path"])
        entry["series_id"] += "r"
    write_json(manifest, content)
    yield "1 % renamed"
    removed = {entry["series_id"] for entry in selected}
    write_json(manifest, {**content, "series": [entry for entry in series if entry["series_id"] not in removed]})
    yield "1 % removed"
    write_json(manifest, content)
    yield "1 % new"


def run(root: Path) -> None:
    """Measure and write ``results/recuration.csv``."""
    volumes = len(read_json(root / "data" / CARD / "manifest.json")["series"])
    shutil.rmtree(root / "curated", ignore_errors=True)
    rows: list[dict[str, Any]] = [{"change": "full", **time_curation(root)}]
    print(rows[0], flush=True)
    for name in apply_changes(root, volumes // 100):
        rows.append({"change": name, **time_curation(root)})
        print(name, rows[-1], flush=True)
    full = rows[0]
    columns = ("change", "total", "new", "removed", "instructions")
    output = [
        {
            **{name: row.get(name, "") for name in columns},
            "curate_s": f"{row['curate_s']:.3f}",
            "process_s": f"{row['process_s']:.3f}",
            "share_of_full": f"{row['curate_s'] / full['curate_s']:.4f}",
            "share_of_full_process": f"{row['process_s'] / full['process_s']:.4f}",
        }
        for row in rows
    ]
    write_rows("recuration", output, versions())


def main() -> None:
    """Prepare the sources, curate once, or run the whole benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=2000)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "omnimri-recuration",
        help="work folder; it is kept and can be reused",
    )
    parser.add_argument("--prepare", action="store_true", help="write and ingest the sources only")
    parser.add_argument(
        "--curate", help="curate into this subfolder of --folder and print time and counts (used by the benchmark itself)"
    )
    arguments = parser.parse_args()
    if arguments.curate:
        curate_here(arguments.folder, arguments.curate)
        return
    if arguments.prepare:
        write_sources(arguments.folder / "source", arguments.volumes)
        ingest_all(arguments.folder)
        return
    run(arguments.folder)


if __name__ == "__main__":
    main()
