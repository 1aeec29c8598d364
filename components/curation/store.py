"""The volume store: voxels, labels and k-space of curated volumes, one slice readable without the rest.

blosc2 ``.b2nd`` arrays (the format nnU-Net keeps its cases in), one chunk per slice. Files are named by ``volume_id`` (a
content digest) under two levels of folders, so that no folder holds more than a few thousand files at 224,194 volumes::

    store/3f/a2/3fa2....voxels.b2nd  .labels.b2nd  .kspace.b2nd

Voxels are kept as float16: after division by the 99.5th percentile they lie around 0-2, where half precision errs by at most
2**-11 relative (a PSNR ceiling near 70 dB, far above any acquisition's noise), at half the disk and page cache of float32.
Readers always get float32. k-space spans many decades and stays complex64.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file

ArrayName = Literal["voxels", "labels", "kspace"]
STORED: dict[ArrayName, np.dtype[Any]] = {
    "voxels": np.dtype(np.float16),
    "labels": np.dtype(np.uint8),
    "kspace": np.dtype(np.complex64),
}
READ: dict[ArrayName, np.dtype[Any]] = {**STORED, "voxels": np.dtype(np.float32)}
_HALF_MAXIMUM = float(np.finfo(np.float16).max)


class VolumeStore:
    """Arrays of (D, H, W) under one folder.

    Args:
        root: the store's folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, volume_id: str, array: ArrayName) -> Path:
        """Where an array is, or would be."""
        return self.root / volume_id[:2] / volume_id[2:4] / f"{volume_id}.{array}.b2nd"

    def write(self, volume_id: str, array: ArrayName, values: NDArray[Any]) -> None:
        """Store one (D, H, W) array, atomically; the same values give the same bytes."""
        if values.ndim != 3:
            raise BadInput(f"{array} has {values.ndim} axes, not (D, H, W)", where=volume_id, remedy="curate it slice axis first")
        if array == "voxels":
            values = np.clip(values, -_HALF_MAXIMUM, _HALF_MAXIMUM)
        stored = np.ascontiguousarray(values, dtype=STORED[array])
        slice_shape = (1, *stored.shape[1:])
        parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=5, nthreads=1)
        with atomic_file(self.path(volume_id, array)) as temporary:
            blosc2.asarray(stored, urlpath=str(temporary), mode="w", chunks=slice_shape, blocks=slice_shape, cparams=parameters)

    def read(self, volume_id: str, array: ArrayName = "voxels", index: int | slice | None = None) -> NDArray[Any]:
        """Read an array: (D, H, W) whole or for a slice of slices, (H, W) for one slice (only its chunk is read).

        Returns float32 voxels, uint8 labels or complex64 k-space.

        Raises:
            BadInput: there is no such array in the store.
        """
        values = self._open(volume_id, array)[slice(None) if index is None else index]
        return np.asarray(values, dtype=READ[array])

    def _open(self, volume_id: str, array: ArrayName) -> Any:
        path = self.path(volume_id, array)
        if not path.exists():
            raise BadInput(f"no {array} of this volume in the store", where=volume_id, remedy="run omnimri curate")
        return blosc2.open(str(path), mode="r")

    def shape(self, volume_id: str, array: ArrayName) -> tuple[int, ...]:
        """Shape of an array, from its header alone.

        Raises:
            BadInput: the array is not in the store.
        """
        return tuple(int(side) for side in self._open(volume_id, array).shape)

    def has(self, volume_id: str, array: ArrayName) -> bool:
        """Whether the array is stored."""
        return self.path(volume_id, array).exists()

    def remove(self, volume_id: str) -> None:
        """Remove every file of a volume, half-written ones of a killed run too; nothing happens where there is none."""
        for path in self.path(volume_id, "voxels").parent.glob(f"*{volume_id}.*"):
            path.unlink(missing_ok=True)

    def volume_ids(self) -> Iterator[str]:
        """Every volume with a file of any kind, in sorted order: what a killed run left behind must be found to be removed."""
        names = {path.name.removeprefix(".").partition(".")[0] for path in self.root.glob("??/??/*")}
        yield from sorted(names)
