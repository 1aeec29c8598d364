"""Loading of training slices, from the store and from MONAI's cached datasets. Every training run logs how long it waits for data
(``data_wait_share``).

python -m benchmarks.loader [--volumes 24]

The same volumes (48 slices of 256 x 256), already resampled and scaled, are in the store and in compressed NIfTI files. Every peer
loads random slices of one volume after another, float32 tensors, in this process. The first pass over all volumes is cold: files
are not in the page cache, and caches are empty; the later passes are warm. MONAI's CacheDataset fills its cache when it is created,
which counts as cold, too.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import monai
import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, PersistentDataset
from monai.transforms import Compose, EnsureTyped, LoadImaged, RandSpatialCropd

from benchmarks.harness import versions, write_rows
from components.curation.store import VolumeStore
from components.training.samples import OPEN_ARRAYS

SHAPE, PASSES, PER_VOLUME = (48, 256, 256), 4, 8
Draw = Callable[[int], torch.Tensor]


def volume(number: int) -> np.ndarray[Any, Any]:
    """Return a smooth head with noise, rounded to float16."""
    rng = np.random.default_rng(number)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    image = np.where(radius < rng.uniform(0.7, 0.9), 1 + 0.3 * np.cos(6 * radius + rng.uniform(0, 6)), 0)
    return np.abs(image + rng.normal(0, 0.02, SHAPE)).astype(np.float16).astype(np.float32)


def evict(folder: Path) -> None:
    """Remove a folder's files from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def store_draw(folder: Path, volumes: int) -> Draw:
    """Return a function that reads one slice, not the volume."""
    store, rng = VolumeStore(folder, keep=OPEN_ARRAYS), random.Random(0)
    return lambda number: torch.from_numpy(store.read(f"{number:032x}", "voxels", rng.randrange(SHAPE[0])))


def monai_draw(make: Callable[[list[dict[str, str]], Compose], Any]) -> Callable[[Path, int], Draw]:
    """Load, convert to a tensor, crop a random slice: the datasets cache the result before the random transform."""

    def prepare(folder: Path, volumes: int) -> Draw:
        transforms = Compose(
            [
                LoadImaged("image", ensure_channel_first=True),
                EnsureTyped("image"),
                RandSpatialCropd("image", (1, *SHAPE[1:]), random_size=False),
            ]
        )
        dataset = make([{"image": str(folder / f"{number}.nii.gz")} for number in range(volumes)], transforms)
        return lambda number: dataset[number]["image"][0, 0]

    return prepare


def measure_speed(prepare: Callable[[Path, int], Draw], folder: Path, volumes: int) -> tuple[float, list[float]]:
    """Return slices per second of the first pass, including its preparation, and of each later pass."""
    evict(folder)
    speeds = []
    started = time.perf_counter()
    draw = prepare(folder, volumes)
    for _ in range(PASSES):
        for _ in range(PER_VOLUME):
            for number in range(volumes):
                draw(number)
        speeds.append(volumes * PER_VOLUME / (time.perf_counter() - started))
        started = time.perf_counter()
    return speeds[0], speeds[1:]


def compare(volumes: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of the comparison."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "nifti").mkdir()
        for number in range(volumes):
            image = volume(number)
            VolumeStore(root / "store").write(f"{number:032x}", "voxels", image)
            nib.save(nib.Nifti1Image(image, np.eye(4)), root / "nifti" / f"{number}.nii.gz")
        cache = root / "cache"
        peers: dict[str, tuple[Callable[[Path, int], Draw], Path]] = {
            "MONAI CacheDataset": (monai_draw(lambda d, t: CacheDataset(d, t, progress=False, num_workers=1)), root / "nifti"),
            "MONAI PersistentDataset": (monai_draw(lambda d, t: PersistentDataset(d, t, cache_dir=cache)), root / "nifti"),
            "OmniMRI store": (store_draw, root / "store"),
        }
        for name, (prepare, folder) in peers.items():
            cold, warm = measure_speed(prepare, folder, volumes)
            for case, value in (("cold", cold), ("warm", statistics.median(warm))):
                print(f"{case} {name:26s} {value:9.0f} slices/s", flush=True)
                yield {"case": f"{case}, {volumes} volumes", "peer": name, "value": round(value, 1), "unit": "slices/s"}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=24)
    arguments = parser.parse_args()
    rows = list(compare(arguments.volumes))
    write_rows("loader", rows, f"{versions()}, monai {monai.__version__}")


if __name__ == "__main__":
    main()
