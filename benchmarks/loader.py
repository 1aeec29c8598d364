"""Slices for training, from the store and from MONAI's cached datasets. How long training waits for data, every run says itself
(``data_wait_share``).

python -m benchmarks.loader [--volumes 24]

The same volumes (48 slices of 256 x 256) lie in the store and as compressed NIfTI, resampled and scaled already. Every peer gives
random slices of one volume after another, float32 tensors, in this process. Cold is the first pass over all volumes, files not in
the page cache, caches empty; warm are the passes after it. MONAI's CacheDataset fills its cache when it is made: cold, too.
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
    """A smooth head with noise, as a float16 image has it."""
    rng = np.random.default_rng(number)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    image = np.where(radius < rng.uniform(0.7, 0.9), 1 + 0.3 * np.cos(6 * radius + rng.uniform(0, 6)), 0)
    return np.abs(image + rng.normal(0, 0.02, SHAPE)).astype(np.float16).astype(np.float32)


def forget(folder: Path) -> None:
    """Take a folder's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def of_the_store(folder: Path, volumes: int) -> Draw:
    """One slice is read, not the volume."""
    store, rng = VolumeStore(folder, keep=OPEN_ARRAYS), random.Random(0)
    return lambda number: torch.from_numpy(store.read(f"{number:032x}", "voxels", rng.randrange(SHAPE[0])))


def of_monai(make: Callable[[list[dict[str, str]], Compose], Any]) -> Callable[[Path, int], Draw]:
    """Load, make a tensor, cut a random slice: what comes before the random transform is what the datasets cache."""

    def drawn(folder: Path, volumes: int) -> Draw:
        transforms = Compose(
            [
                LoadImaged("image", ensure_channel_first=True),
                EnsureTyped("image"),
                RandSpatialCropd("image", (1, *SHAPE[1:]), random_size=False),
            ]
        )
        dataset = make([{"image": str(folder / f"{number}.nii.gz")} for number in range(volumes)], transforms)
        return lambda number: dataset[number]["image"][0, 0]

    return drawn


def timed(drawn: Callable[[Path, int], Draw], folder: Path, volumes: int) -> tuple[float, list[float]]:
    """Slices a second of the first pass, its preparation included, and of the passes after it."""
    forget(folder)
    speeds = []
    begun = time.perf_counter()
    draw = drawn(folder, volumes)
    for _ in range(PASSES):
        for _ in range(PER_VOLUME):
            for number in range(volumes):
                draw(number)
        speeds.append(volumes * PER_VOLUME / (time.perf_counter() - begun))
        begun = time.perf_counter()
    return speeds[0], speeds[1:]


def compared(volumes: int) -> Iterator[dict[str, Any]]:
    """Rows of the comparison."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "nifti").mkdir()
        for number in range(volumes):
            image = volume(number)
            VolumeStore(root / "store").write(f"{number:032x}", "voxels", image)
            nib.save(nib.Nifti1Image(image, np.eye(4)), root / "nifti" / f"{number}.nii.gz")
        cache = root / "cache"
        peers: dict[str, tuple[Callable[[Path, int], Draw], Path]] = {
            "MONAI CacheDataset": (of_monai(lambda d, t: CacheDataset(d, t, progress=False, num_workers=1)), root / "nifti"),
            "MONAI PersistentDataset": (of_monai(lambda d, t: PersistentDataset(d, t, cache_dir=cache)), root / "nifti"),
            "OmniMRI store": (of_the_store, root / "store"),
        }
        for name, (drawn, folder) in peers.items():
            cold, warm = timed(drawn, folder, volumes)
            for case, value in (("cold", cold), ("warm", statistics.median(warm))):
                print(f"{case} {name:26s} {value:9.0f} slices/s", flush=True)
                yield {"case": f"{case}, {volumes} volumes", "peer": name, "value": round(value, 1), "unit": "slices/s"}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=24)
    arguments = parser.parse_args()
    rows = list(compared(arguments.volumes))
    write_rows("loader", rows, f"{versions()}, monai {monai.__version__}")


if __name__ == "__main__":
    main()
