"""The volume store: voxels, labels and k-space of curated volumes, one slice readable without the rest, every slice checksummed.

blosc2 ``.b2nd`` arrays (the format nnU-Net keeps its cases in), one chunk per index of the first axis: a slice of (D, H, W), all
coils of a slice of (D, coils, H, W). Files are named by ``volume_id`` (a content digest) under two levels of folders, so that no
folder holds more than a few thousand files at 224,194 volumes::

    store/3f/a2/3fa2....voxels.b2nd  .labels.b2nd  .kspace.b2nd

Voxels are kept as float16: after division by the 99.5th percentile they lie around 0-2, where half precision errs by at most
2**-11 relative (a PSNR ceiling near 70 dB, far above any acquisition's noise), at half the disk and page cache of float32.
Readers always get float32. k-space spans many decades and stays complex64. Zstandard's first level: the next four take up to eight
times as long for 1 % less.

**Checksums.** A file carries the CRC-32 of every compressed chunk beside its shape, under a CRC-32 of that table, the volume's name
and the array's. Values are made from exactly these: chunk bytes that were checked, the shape of the table, the type of the array.
Damage to anything else in the file (frame header, index of chunks) can hide a chunk but not change a value. Damage to bytes that
nobody reads is found by the MD5 of the whole file, which :func:`VolumeStore.write` returns for the sidecar.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import blosc2
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.provenance import file_md5

ArrayName = Literal["voxels", "labels", "kspace"]
STORED: dict[ArrayName, np.dtype[Any]] = {
    "voxels": np.dtype(np.float16),
    "labels": np.dtype(np.uint8),
    "kspace": np.dtype(np.complex64),
}
READ: dict[ArrayName, np.dtype[Any]] = {**STORED, "voxels": np.dtype(np.float32)}
REMEDY = "omnimri data verify --repair removes what is damaged; omnimri curate then makes it again"
_HALF_MAXIMUM = float(np.finfo(np.float16).max)
_CHECKSUMS = "checksums"


@dataclass(frozen=True)
class _Checksums:
    """What an array must be.

    Attributes:
        shape: of the array.
        chunks: CRC-32 of each compressed chunk, one per index of the first axis.
    """

    shape: tuple[int, ...]
    chunks: NDArray[np.uint32]

    def pack(self, name: str) -> bytes:
        """Number of axes, shape, sums, and the CRC-32 of these and of the array's name: little-endian 32-bit words."""
        words = np.array([len(self.shape), *self.shape, *self.chunks], "<u4").tobytes()
        return words + zlib.crc32(words, zlib.crc32(name.encode())).to_bytes(4, "little")

    @classmethod
    def unpack(cls, packed: bytes, name: str) -> _Checksums | None:
        """The table; None where it is damaged or another array's."""
        words, own = packed[:-4], packed[-4:]
        if len(packed) % 4 or zlib.crc32(words, zlib.crc32(name.encode())).to_bytes(4, "little") != own:
            return None
        numbers = np.frombuffer(words, "<u4")
        axes = int(numbers[0])
        return cls(tuple(int(side) for side in numbers[1 : 1 + axes]), numbers[1 + axes :])


def _halved(values: NDArray[Any]) -> NDArray[np.float16]:
    """Voxels (D, ...) as float16, what is beyond its range at its ends; a slice at a time, which stays in the cache."""
    halved = np.empty(values.shape, dtype=np.float16)
    for plane, target in zip(values, halved, strict=True):
        target[...] = np.clip(plane, -_HALF_MAXIMUM, _HALF_MAXIMUM)
    return halved


class _Stored:
    """One open array. Chunks are fetched compressed, checked, and only then unpacked."""

    def __init__(self, path: Path, array: ArrayName) -> None:
        self.path, self.array = path, array
        try:
            self._file = blosc2.open(str(path), mode="r")  # kept: its chunks die with it
            packed = self._file.schunk.vlmeta[_CHECKSUMS]
        except Exception as error:  # whatever a damaged header makes of the library
            raise self._damaged(f"its header cannot be read ({type(error).__name__})") from None
        checksums = _Checksums.unpack(bytes(packed), path.name) if isinstance(packed, bytes) else None
        if checksums is None:
            raise self._damaged("its table of checksums is broken, or belongs to another array")
        self.checksums = checksums
        self.shape = checksums.shape

    def _damaged(self, how: str) -> BadInput:
        return BadInput(f"damaged: {how}", where=self.path.name, remedy=REMEDY)

    def chunk_into(self, index: int, target: NDArray[Any]) -> None:
        """Write one index of the first axis into ``target``, which is contiguous and of the stored type.

        Raises:
            BadInput: the chunk is not the one that was written.
        """
        try:
            chunk = self._file.schunk.get_chunk(index)
            if zlib.crc32(chunk) == self.checksums.chunks[index]:
                blosc2.decompress2(chunk, dst=target, nthreads=1)
                return
        except Exception as error:
            raise self._damaged(f"slice {index} cannot be read ({type(error).__name__})") from None
        raise self._damaged(f"slice {index} fails its checksum")

    def read(self, indices: Iterable[int]) -> NDArray[Any]:
        """Some indices of the first axis, stacked, in the stored type."""
        indices = list(indices)
        values = np.empty((len(indices), *self.shape[1:]), STORED[self.array])
        for place, index in enumerate(indices):
            self.chunk_into(index, values[place])
        return values


class VolumeStore:
    """Arrays of (D, H, W), or (D, coils, H, W), under one folder.

    Args:
        root: the store's folder; made by the first write.
        keep: arrays that stay open between reads, the last ones used: opening takes ten times as long as a slice. For one thread,
            and not across a fork (:meth:`forget`).
    """

    def __init__(self, root: Path, keep: int = 0) -> None:
        self.root, self.keep = root, keep
        self._kept: OrderedDict[Path, tuple[tuple[int, int, int], _Stored]] = OrderedDict()

    def forget(self) -> None:
        """Keep nothing open."""
        self._kept.clear()

    def path(self, volume_id: str, array: ArrayName) -> Path:
        """Where an array is, or would be."""
        return self.root / volume_id[:2] / volume_id[2:4] / f"{volume_id}.{array}.b2nd"

    def write(self, volume_id: str, array: ArrayName, values: NDArray[Any]) -> str:
        """Store one array, slice axis first, atomically; the same values give the same bytes. Returns the MD5 of the file."""
        if values.ndim not in (3, 4):
            raise BadInput(
                f"{array} has {values.ndim} axes, not (D, H, W) or (D, coils, H, W)",
                where=volume_id,
                remedy="curate it slice axis first",
            )
        stored = _halved(values) if array == "voxels" else np.ascontiguousarray(values, dtype=STORED[array])
        chunk = (1, *stored.shape[1:])
        parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1)
        target = self.path(volume_id, array)
        # Packed in memory and written at once: in a file blosc2 writes its index anew after every chunk.
        packed = blosc2.asarray(stored, chunks=chunk, blocks=chunk, cparams=parameters, contiguous=True)
        sums = np.array([zlib.crc32(packed.schunk.get_chunk(index)) for index in range(len(stored))], "<u4")
        packed.schunk.vlmeta[_CHECKSUMS] = _Checksums(stored.shape, sums).pack(target.name)
        content = packed.to_cframe()
        with atomic_file(target) as temporary:
            temporary.write_bytes(content)
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def read(self, volume_id: str, array: ArrayName = "voxels", index: int | slice | None = None) -> NDArray[Any]:
        """Read an array: (D, ...) whole or for a slice of slices, (...) for one slice (only its chunk is read).

        Returns float32 voxels, uint8 labels or complex64 k-space.

        Raises:
            BadInput: there is no such array in the store, no such slice, or one that fails its checksum.
        """
        stored = self._open(volume_id, array)
        slices = range(stored.shape[0])
        try:
            wanted = [slices[index]] if isinstance(index, int | np.integer) else slices[slice(None) if index is None else index]
        except IndexError:
            raise BadInput(f"no slice {index} of {len(slices)}", where=stored.path.name, remedy="count slices from 0") from None
        values = stored.read(wanted)
        return np.asarray(values[0] if isinstance(index, int | np.integer) else values, dtype=READ[array])

    def _open(self, volume_id: str, array: ArrayName) -> _Stored:
        path = self.path(volume_id, array)
        try:
            found = path.stat()
        except FileNotFoundError:
            raise BadInput(f"no {array} of this volume in the store", where=volume_id, remedy="run omnimri curate") from None
        if not self.keep:
            return _Stored(path, array)
        same = found.st_ino, found.st_mtime_ns, found.st_size
        known = self._kept.pop(path, None)
        stored = known[1] if known is not None and known[0] == same else _Stored(path, array)
        self._kept[path] = same, stored
        if len(self._kept) > self.keep:
            self._kept.popitem(last=False)
        return stored

    def shape(self, volume_id: str, array: ArrayName) -> tuple[int, ...]:
        """Shape of an array, from its table of checksums alone.

        Raises:
            BadInput: the array is not in the store.
        """
        return self._open(volume_id, array).shape

    def has(self, volume_id: str, array: ArrayName) -> bool:
        """Whether the array is stored."""
        return self.path(volume_id, array).exists()

    def faults(self, volume_id: str, array: ArrayName, md5: str) -> list[str]:
        """What is wrong with an array whose file had this MD5 when it was written, one sentence each; empty where it is whole."""
        path = self.path(volume_id, array)
        if not path.exists():
            return ["missing"]
        if file_md5(path) == md5:
            return []
        try:
            stored = _Stored(path, array)
        except BadInput as error:
            return [error.what]
        found = []
        for index in range(stored.shape[0]):
            try:
                stored.read([index])
            except BadInput as error:
                found.append(error.what)
        return found or ["damaged: bytes outside of the slices differ; all slices are whole"]

    def remove(self, volume_id: str) -> None:
        """Remove every file of a volume, half-written ones of a killed run too; nothing happens where there is none.

        The sidecar goes first: a volume that is half gone must not look whole.
        """
        found = self.path(volume_id, "voxels").parent.glob(f"*{volume_id}.*")
        for path in sorted(found, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)

    def volume_ids(self) -> Iterator[str]:
        """Every volume with a file of any kind, in sorted order: what a killed run left behind must be found to be removed."""
        names = {path.name.removeprefix(".").partition(".")[0] for path in self.root.glob("??/??/*")}
        yield from sorted(names)
