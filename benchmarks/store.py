"""Write DICOM series to the volume store and read single slices from it, compared with alternatives.

python -m benchmarks.store [--series 200]

Throughput: every peer gets the same classic DICOM series (25 slices of 256 x 256) and two processes, and is timed from the first
file to the last volume on disk, including the start of processes; peers alternate, and the median counts. Read-back: the same in
one process and without its start; peers alternate series by series, and include the check of the files that ingestion wrote.
Reading: one random slice of one random volume, with the file opened anew each time, as a sampler over a large corpus does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import zarr
from pydicom.uid import UID

from components.catalog import DatasetCard
from components.curation.store import VolumeStore
from components.ingestion.cleaning import clean_file
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms
from components.ingestion.formats.base import WriteContext
from components.ingestion.formats.dicom.classic import check_slices, read_series
from components.ingestion.formats.dicom.planned_files import PlannedDicom
from components.ingestion.staging import Staging
from components.samples.anatomies.brain import BRAIN, CENTER_MM
from components.samples.dicom_series import create_mr_image
from components.samples.phantom import Grid, Patient, generate_patient

SLICES, PIXELS, WORKERS, ROUNDS = 25, 256, 2, 7
READ_SHAPE, READ_VOLUMES, READS = (85, 256, 256), 12, 400
CARD = DatasetCard(id="benchmark", name="generated brains", rights="none", anatomy="brain", formats=("DICOM",), synthetic=True)


def simulate_image(number: int, shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Simulate a brain with noise, (D, H, W) int16."""
    brain = generate_clean_brain(shape)
    images = {sequence: np.roll(image, number, axis=2) for sequence, image in brain.images.items()}
    return replace(brain, seed=(7, number), images=images).simulate_magnitude("T1-weighted").astype(np.int16)


@cache
def generate_clean_brain(shape: tuple[int, int, int]) -> Patient:
    """Generate the same brain without noise."""
    grid = Grid(slices=shape[0], pixels=shape[1], slice_mm=120 / shape[0], pixel_mm=240 / shape[1], center_mm=CENTER_MM)
    return generate_patient(BRAIN, 1, grid, (7,), 0.5, ("T1-weighted",))


def write_series(folder: Path, series: int) -> None:
    """Write DICOM series, each to a folder of its own."""
    patient = generate_clean_brain((SLICES, PIXELS, PIXELS))
    template = create_mr_image(BRAIN, patient, BRAIN.protocols[0], 1, 0, np.zeros((PIXELS, PIXELS), np.uint16))
    for number in range(series):
        series_folder = folder / f"{number:04d}"
        series_folder.mkdir(parents=True)
        for index, plane in enumerate(simulate_image(number, (SLICES, PIXELS, PIXELS)).astype(np.uint16)):
            template.PixelData = plane.tobytes()
            template.SOPInstanceUID = template.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number + 1}.{index + 1}")
            template.SeriesInstanceUID, template.PatientID = f"1.2.3.{number + 1}", f"P{number}"
            template.InstanceNumber, template.ImagePositionPatient = index + 1, [-120.0, -120.0, 5.0 * index]
            template.PixelSpacing, template.SliceThickness = [0.9375, 0.9375], 5.0
            template.save_as(series_folder / f"{index:03d}.dcm", enforce_file_format=True)


def store_with_omnimri(folder: Path, out: Path) -> None:
    """Read a series and store its volume."""
    voxels = read_series(sorted(folder.iterdir()), None).voxels
    voxels /= 1000
    VolumeStore(out).write(f"{int(folder.name):032x}", "voxels", voxels)


def store_with_dcm2niix(folder: Path, out: Path) -> None:
    """Convert a series with dcm2niix to uncompressed NIfTI, read it with nibabel, and write it to the same store."""
    with tempfile.TemporaryDirectory() as temporary:
        run_dcm2niix(folder, Path(temporary), compress=False)
        values = np.asanyarray(nib.load(next(Path(temporary).glob("*.nii"))).dataobj)  # type: ignore[attr-defined]
        VolumeStore(out).write(f"{int(folder.name):032x}", "voxels", values.transpose(2, 1, 0) / np.float32(1000))


def run_dcm2niix(folder: Path, out: Path, compress: bool) -> None:
    """Run dcm2niix on a folder with one series."""
    from dcm2niix import bin as program

    arguments = [str(program), "-z", "i" if compress else "n", "-b", "n", "-f", folder.name, "-o", str(out), str(folder)]
    subprocess.run(arguments, check=True, capture_output=True)


def measure_throughput(series: int) -> list[dict[str, Any]]:
    """Return slices and megabytes per second of each peer."""
    root = Path(tempfile.mkdtemp(prefix="omnimri-store-"))
    write_series(root / "dicom", series)
    folders = sorted((root / "dicom").iterdir())
    megabytes = sum(path.stat().st_size for path in (root / "dicom").rglob("*.dcm")) / 1e6

    def run_in_processes(convert: Callable[[Path, Path], None], out: Path) -> None:
        with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:
            list(pool.map(convert, folders, itertools.repeat(out), chunksize=2))

    def convert_to_compressed(out: Path) -> None:
        with ThreadPoolExecutor(WORKERS) as pool:  # dcm2niix runs in processes of its own
            list(pool.map(lambda folder: run_dcm2niix(folder, out, compress=True), folders))

    peers: dict[str, Callable[[Path], None]] = {
        "dcm2niix to .nii.gz": convert_to_compressed,
        "dcm2niix, nibabel, to the store": lambda out: run_in_processes(store_with_dcm2niix, out),
        "OmniMRI, to the store": lambda out: run_in_processes(store_with_omnimri, out),
    }
    times: dict[str, list[float]] = {name: [] for name in peers}
    for turn in range(ROUNDS):
        for name, run in list(peers.items())[:: 1 if turn % 2 else -1]:
            out = root / "out"
            out.mkdir()
            os.sync()
            started = time.perf_counter()
            run(out)
            times[name].append(time.perf_counter() - started)
            shutil.rmtree(out)
    shutil.rmtree(root)
    rows = []
    for name, seconds in times.items():
        median, spread = statistics.median(seconds), f"{min(seconds):.2f} to {max(seconds):.2f}, {ROUNDS} rounds"
        rows.append(
            {
                "case": f"{series * SLICES} slices in, 2 processes",
                "peer": name,
                "value": round(series * SLICES / median, 1),
                "unit": "slices/s",
                "more": f"{megabytes / median:.1f} MB/s, {median:.2f} s ({spread})",
            }
        )
    return rows


class WrittenSeries:
    """A DICOM series before and after ingestion: its planned files, what they contain, and the files that were written."""

    def __init__(self, source: Path, data: Path) -> None:
        """Ingest the series of a folder."""
        context = WriteContext(CARD, Pseudonyms(DEMO_KEY, CARD.id))
        self.source, staging = source, Staging(data / CARD.id)
        targets = {path: f"{CARD.id}/{source.name}/{path.name}" for path in sorted(source.iterdir())}
        self._planned = [PlannedDicom(path, target, "image", source.name) for path, target in targets.items()]
        self._outputs = [planned.prepare(context) for planned in self._planned]
        self._clean = partial(clean_file, staging=staging, context=context)
        self._paths = [staging.path(target) for target in targets.values()]
        self.write()
        for output, path in zip(self._outputs, self._paths, strict=True):
            output.write(path)

    @property
    def folder(self) -> Path:
        """Folder of the written files."""
        return self._paths[0].parent

    def write(self) -> None:
        """De-identify, write and read back all files, and check that they form a volume."""
        cleaned = [self._clean(planned).read_back for planned in self._planned]
        check_slices(self._paths, [slice_ for slice_ in cleaned if slice_ is not None])

    def read_back(self) -> None:
        """Read back the files that were written, and check that they form a volume."""
        slices = [output.check(path) for output, path in zip(self._outputs, self._paths, strict=True)]
        check_slices(self._paths, [slice_ for slice_ in slices if slice_ is not None])


def store_after_read_back(series: WrittenSeries, out: Path) -> None:
    """Read back the written files, then read them and store their volume."""
    series.read_back()
    store_with_omnimri(series.folder, out)


def store_after_writing(series: WrittenSeries, out: Path) -> None:
    """De-identify, write and read back the files, then read them and store their volume."""
    series.write()
    store_with_omnimri(series.folder, out)


READ_BACK_PEERS: dict[str, Callable[[WrittenSeries, Path], None]] = {
    "dcm2niix, nibabel, to the store": lambda series, out: store_with_dcm2niix(series.source, out),
    "OmniMRI, to the store": lambda series, out: store_with_omnimri(series.folder, out),
    "OmniMRI, read back, to the store": store_after_read_back,
    "OmniMRI, de-identified, written, read back, to the store": store_after_writing,
}


def measure_read_back(count: int) -> list[dict[str, Any]]:
    """Return slices per second of each peer in one process, with the read-back of the files that ingestion wrote."""
    root = Path(tempfile.mkdtemp(prefix="omnimri-read-back-"))
    write_series(root / "dicom", count)
    times: dict[str, list[float]] = {name: [] for name in READ_BACK_PEERS}
    for turn, folder in enumerate(sorted((root / "dicom").iterdir())):
        series = WrittenSeries(folder, root / "data")
        for name, run in list(READ_BACK_PEERS.items())[:: 1 if turn % 2 else -1]:
            out = root / "out"
            out.mkdir()
            os.sync()
            started = time.perf_counter()
            run(series, out)
            times[name].append(time.perf_counter() - started)
            shutil.rmtree(out)
    shutil.rmtree(root)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    reference = medians["dcm2niix, nibabel, to the store"]
    return [
        {
            "case": f"{count} series of {SLICES} slices in, read back, 1 process",
            "peer": name,
            "value": round(SLICES / median, 1),
            "unit": "slices/s",
            "more": f"{median * 1e3:.1f} ms a series, {reference / median:.2f} times the first",
        }
        for name, median in medians.items()
    ]


def nnunet_layout(shape: tuple[int, ...], patch: tuple[int, ...], width: int = 4) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunks and blocks of (C, D, H, W) by nnU-Net's published rule.

    Blocks start from powers of two at or above the patch size and are halved until they fit into the L1 cache; chunks grow from
    blocks up to one core's share of the L3 cache, and not beyond one and a half patches.
    """
    sides = np.array(patch)
    block = np.array([2 ** max(0, math.ceil(math.log2(side))) for side in sides])
    while shape[0] * block.prod() * width > 32768 * 0.8:
        ratio = np.where(block > 1, block / sides, -1)
        axis = int(np.argsort(ratio)[-1])
        block[axis] = min(2 ** max(0, math.floor(math.log2(block[axis] - 1))), shape[axis + 1])
    block = np.minimum(block, shape[1:])
    chunk = block.copy()
    while shape[0] * chunk.prod() * width < 1441792 * 0.8:
        free = [axis for axis in np.argsort(chunk / block) if chunk[axis] < shape[axis + 1] and patch[axis] > 1]
        if not free:
            break
        previous = chunk[free[0]]
        chunk[free[0]] = min(previous + block[free[0]], shape[free[0] + 1])
        if np.mean(chunk / sides) > 1.5:
            chunk[free[0]] = previous
            break
    return (shape[0], *map(int, chunk)), (shape[0], *map(int, block))


def measure_reading() -> list[dict[str, Any]]:
    """Return microseconds to read one random slice as an array, and the size of a volume on disk."""
    root = Path(tempfile.mkdtemp(prefix="omnimri-read-"))
    store = VolumeStore(root / "ours")
    chunks, blocks = nnunet_layout((1, *READ_SHAPE), (48, 192, 192))
    for number in range(READ_VOLUMES):
        values = simulate_image(number, READ_SHAPE)
        scaled = (values / np.float32(1000)).astype(np.float32)
        store.write(f"{number:032x}", "voxels", scaled)
        blosc2.asarray(
            scaled[None],
            urlpath=str(root / f"{number}.b2nd"),
            chunks=chunks,
            blocks=blocks,
            cparams=blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=8, nthreads=1),
        )
        nib.save(nib.Nifti1Image(values.transpose(2, 1, 0), np.eye(4)), root / f"{number}.nii.gz")
        half = scaled.astype(np.float16)
        layout: dict[str, Any] = {"shape": half.shape, "dtype": half.dtype, "chunks": (1, *half.shape[1:]), "zarr_format": 3}
        zarr.create_array(root / f"{number}.zarr", **layout)[:] = half
        zarr.create_array(root / f"{number}.sharded", shards=half.shape, **layout)[:] = half
    peers: dict[str, tuple[Callable[[int, int], Any], str]] = {
        "compressed NIfTI": (lambda n, k: np.asarray(nib.load(root / f"{n}.nii.gz").dataobj[:, :, k]), "*.nii.gz"),  # type: ignore[attr-defined]
        "Zarr v3, a chunk a slice": (lambda n, k: zarr.open_array(root / f"{n}.zarr", mode="r")[k], "*.zarr/**/*"),
        "Zarr v3, one shard": (lambda n, k: zarr.open_array(root / f"{n}.sharded", mode="r")[k], "*.sharded/**/*"),
        "nnU-Net's blosc2 layout": (
            lambda n, k: blosc2.open(str(root / f"{n}.b2nd"), mode="r", mmap_mode="r", dparams={"nthreads": 1})[0, k],
            "*.b2nd",
        ),
        "OmniMRI (checksummed)": (lambda n, k: store.read(f"{n:032x}", "voxels", k), "ours/**/*.b2nd"),
    }
    rng = np.random.default_rng(0)
    samples = [(int(rng.integers(READ_VOLUMES)), int(rng.integers(READ_SHAPE[0]))) for _ in range(READS)]
    times: dict[str, list[float]] = {name: [] for name in peers}
    for count, (volume, index) in enumerate(samples):
        for name, (read, _) in peers.items():
            if name == "compressed NIfTI" and count % 20:
                continue
            started = time.perf_counter()
            assert read(volume, index).size == READ_SHAPE[1] * READ_SHAPE[2]
            times[name].append(time.perf_counter() - started)
    rows = []
    for name, (_, files) in peers.items():
        size = sum(path.stat().st_size for path in root.glob(files) if path.is_file()) / READ_VOLUMES / 1e6
        median = round(statistics.median(times[name]) * 1e6, 1)
        more = f"{size:.2f} MB a volume"
        rows.append({"case": "one slice of 85 x 256 x 256 out", "peer": name, "value": median, "unit": "us", "more": more})
    shutil.rmtree(root)
    return rows


def main() -> None:
    """Measure reading and throughput, and write ``results/store.csv``."""
    from benchmarks.harness import write_rows  # imported here so that worker processes do not load PyTorch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=200)
    series = parser.parse_args().series
    rows = [*measure_reading(), *measure_throughput(series), *measure_read_back(series)]
    versions = f"blosc2 {blosc2.__version__}, zarr {zarr.__version__}, nibabel {nib.__version__}, numpy {np.__version__}"
    for row in rows:
        print(row, flush=True)
    write_rows("store", rows, versions)


if __name__ == "__main__":
    main()
