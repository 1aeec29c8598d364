"""The volume store: voxels, labels and k-space of curated volumes; each slice can be read alone and has a checksum.

Arrays are blosc2 ``.b2nd`` files (the format in which nnU-Net stores its cases), one chunk per index of the first axis: a slice of
(D, H, W), all coils of a slice of (D, coils, H, W). Files are named by ``volume_id`` (a content digest) under two levels of
folders, so that no folder contains more than a few thousand files at 224,194 volumes::

    store/3f/a2/3fa2....voxels.b2nd  .labels.b2nd  .kspace.b2nd  .coils.b2nd  .sensitivities.b2nd

Voxels are stored as float16: after division by the 99.5th percentile they are around 0-2, where the relative error of half
precision is at most 2**-11 (a PSNR ceiling near 70 dB, far above the noise of any acquisition), at half the disk space and page
cache of float32. Readers always return float32. k-space of one coil spans many decades and stays complex64; that of several coils
and their sensitivities, up to sixteen times as many values, are stored as pairs of float16: the relative error of a real or
imaginary part is at most 2**-11 above 6e-5, the absolute one 3e-8 below. Compression uses the first level of
Zstandard: the next four take up to eight times as long to save 1 %.

**Checksums.** A file contains its shape and the CRC-32 of every compressed chunk, protected by a CRC-32 over this table, the name
of the volume and that of the array. Values are computed from exactly these: verified chunk bytes, the shape in the table, and the
type of the array. Damage to anything else in the file (frame header, index of chunks) can make a chunk unreadable but cannot change
a value. Damage to bytes that are never read is found by the MD5 of the whole file, which :func:`VolumeStore.write` returns for the
sidecar.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.machine_faults import raise_machine_fault
from components.provenance import file_md5

ArrayName = Literal["voxels", "labels", "kspace", "coils", "sensitivities"]
STORED: dict[ArrayName, np.dtype[Any]] = {
    "voxels": np.dtype(np.float16),
    "labels": np.dtype(np.uint8),
    "kspace": np.dtype(np.complex64),
    "coils": np.dtype(np.float16),
    "sensitivities": np.dtype(np.float16),
}
HALF_COMPLEX = ("coils", "sensitivities")
"""Complex arrays that are stored as pairs of float16: real and imaginary parts alternate along the last axis."""
READ: dict[ArrayName, np.dtype[Any]] = {
    **STORED,
    "voxels": np.dtype(np.float32),
    "coils": np.dtype(np.complex64),
    "sensitivities": np.dtype(np.complex64),
}
REMEDY = "run omnimri data verify --repair to remove damaged volumes, then omnimri curate to create them again"
_HALF_MAXIMUM = float(np.finfo(np.float16).max)
_CHECKSUMS = "checksums"


@dataclass(frozen=True)
class _ChecksumTable:
    """Shape and checksums of an array.

    Attributes:
        shape: of the array.
        chunks: CRC-32 of each compressed chunk, one per index of the first axis.
    """

    shape: tuple[int, ...]
    chunks: NDArray[np.uint32]

    def pack(self, name: str) -> bytes:
        """Encode number of axes, shape, checksums, and the CRC-32 of these and of the file name as little-endian 32-bit words."""
        words = np.array([len(self.shape), *self.shape, *self.chunks], "<u4").tobytes()
        return words + zlib.crc32(words, zlib.crc32(name.encode())).to_bytes(4, "little")

    @classmethod
    def unpack(cls, packed: bytes, name: str) -> _ChecksumTable | None:
        """Decode a table; None if it is damaged or belongs to another array."""
        words, checksum = packed[:-4], packed[-4:]
        if len(packed) % 4 or zlib.crc32(words, zlib.crc32(name.encode())).to_bytes(4, "little") != checksum:
            return None
        numbers = np.frombuffer(words, "<u4")
        axes = int(numbers[0])
        return cls(tuple(int(side) for side in numbers[1 : 1 + axes]), numbers[1 + axes :])


def _to_float16(values: NDArray[Any]) -> NDArray[np.float16]:
    """Convert voxels (D, ...) to float16, clipped to its range, one slice at a time so that the slice stays in the CPU cache."""
    converted = np.empty(values.shape, dtype=np.float16)
    for plane, target in zip(values, converted, strict=True):
        target[...] = np.clip(plane, -_HALF_MAXIMUM, _HALF_MAXIMUM)
    return converted


class _OpenArray:
    """One open array. Chunks are read compressed, verified, and only then decompressed."""

    def __init__(self, path: Path, array: ArrayName) -> None:
        import blosc2  # takes a second, and predictions read no store

        self.path, self.array = path, array
        try:
            self._file = blosc2.open(str(path), mode="r")  # keep a reference: its chunks are freed with it
            packed = self._file.schunk.vlmeta[_CHECKSUMS]
        except Exception as error:  # a damaged header can raise any error in the library
            self._require_sound_machine(error)
            raise self._damage(f"its header cannot be read ({type(error).__name__})") from None
        checksums = _ChecksumTable.unpack(bytes(packed), path.name) if isinstance(packed, bytes) else None
        if checksums is None:
            raise self._damage("its table of checksums is broken, or belongs to another array")
        self.checksums = checksums
        self.shape = checksums.shape

    def _require_sound_machine(self, error: Exception) -> None:
        """Raise the fault of the machine that kept the library from reading: it reports none, so that the file is read again.

        Raises:
            MachineFault: there is one; the file is not damaged, and must not be removed.
        """
        raise_machine_fault(error, self.path.name)
        try:
            file_md5(self.path)
        except OSError as cause:
            raise_machine_fault(cause, self.path.name)

    def _damage(self, details: str) -> BadInput:
        return BadInput(f"damaged: {details}", where=self.path.name, remedy=REMEDY)

    def read_chunk(self, index: int, target: NDArray[Any]) -> None:
        """Read one index of the first axis into ``target``, which is contiguous and of the stored type.

        Raises:
            BadInput: the chunk differs from the one that was written.
        """
        import blosc2

        try:
            chunk = self._file.schunk.get_chunk(index)
            if zlib.crc32(chunk) == self.checksums.chunks[index]:
                blosc2.decompress2(chunk, dst=target, nthreads=1)
                return
        except Exception as error:
            self._require_sound_machine(error)
            raise self._damage(f"slice {index} cannot be read ({type(error).__name__})") from None
        raise self._damage(f"slice {index} fails its checksum")

    def read(self, indices: Iterable[int]) -> NDArray[Any]:
        """Read some indices of the first axis, stacked, in the stored type."""
        indices = list(indices)
        values = np.empty((len(indices), *self.shape[1:]), STORED[self.array])
        for position, index in enumerate(indices):
            self.read_chunk(index, values[position])
        return values


class VolumeStore:
    """Arrays of (D, H, W), or (D, coils, H, W), under one folder.

    Args:
        root: folder of the store; created by the first write.
        keep: number of most recently used arrays that stay open between reads: opening takes ten times as long as reading a slice.
            For use by one thread, and not across a fork (:meth:`close_all`).
    """

    def __init__(self, root: Path, keep: int = 0) -> None:
        self.root, self.keep = root, keep
        self._open_arrays: OrderedDict[Path, tuple[tuple[int, int, int], _OpenArray]] = OrderedDict()

    def close_all(self) -> None:
        """Close all arrays that are kept open."""
        self._open_arrays.clear()

    def path(self, volume_id: str, array: ArrayName) -> Path:
        """Return the path of an array, whether it exists or not."""
        return self.root / volume_id[:2] / volume_id[2:4] / f"{volume_id}.{array}.b2nd"

    def write(self, volume_id: str, array: ArrayName, values: NDArray[Any]) -> str:
        """Store one array, slice axis first, atomically; return the MD5 of the file. The same values give the same bytes."""
        if values.ndim not in (3, 4):
            raise BadInput(
                f"{array} has {values.ndim} axes, not (D, H, W) or (D, coils, H, W)",
                where=volume_id,
                remedy="curate it slice axis first",
            )
        import blosc2

        if array in HALF_COMPLEX:
            values = np.ascontiguousarray(values, dtype=np.complex64).view(np.float32)
            if not np.abs(values).max(initial=0) <= _HALF_MAXIMUM:
                raise BadInput(f"{array} beyond half precision", where=volume_id, remedy="check the scale of its k-space")
        stored = _to_float16(values) if STORED[array] == np.float16 else np.ascontiguousarray(values, dtype=STORED[array])
        chunk = (1, *stored.shape[1:])
        parameters = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=1, nthreads=1)
        target = self.path(volume_id, array)
        # Compress in memory and write at once: in a file, blosc2 would rewrite its index after every chunk.
        packed = blosc2.asarray(stored, chunks=chunk, blocks=chunk, cparams=parameters, contiguous=True)
        checksums = np.array([zlib.crc32(packed.schunk.get_chunk(index)) for index in range(len(stored))], "<u4")
        packed.schunk.vlmeta[_CHECKSUMS] = _ChecksumTable(stored.shape, checksums).pack(target.name)
        content = packed.to_cframe()
        with atomic_file(target) as temporary:
            temporary.write_bytes(content)
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    def read(self, volume_id: str, array: ArrayName = "voxels", index: int | slice | None = None) -> NDArray[Any]:
        """Read an array: (D, ...) for all slices or a range of slices, (...) for one slice (only its chunk is read).

        Returns:
            float32 voxels, uint8 labels, complex64 k-space or sensitivities.

        Raises:
            BadInput: the array or slice does not exist, or a slice fails its checksum.
        """
        stored = self._open(volume_id, array)
        slices = range(stored.shape[0])
        try:
            indices = [slices[index]] if isinstance(index, int | np.integer) else slices[slice(None) if index is None else index]
        except IndexError:
            raise BadInput(f"no slice {index} of {len(slices)}", where=stored.path.name, remedy="count slices from 0") from None
        values = stored.read(indices)
        if array in HALF_COMPLEX:
            values = values.astype(np.float32).view(np.complex64)
        return np.asarray(values[0] if isinstance(index, int | np.integer) else values, dtype=READ[array])

    def _open(self, volume_id: str, array: ArrayName) -> _OpenArray:
        path = self.path(volume_id, array)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise BadInput(f"no {array} of this volume in the store", where=volume_id, remedy="run omnimri curate") from None
        if not self.keep:
            return _OpenArray(path, array)
        version = status.st_ino, status.st_mtime_ns, status.st_size
        cached = self._open_arrays.pop(path, None)
        stored = cached[1] if cached is not None and cached[0] == version else _OpenArray(path, array)
        self._open_arrays[path] = version, stored
        if len(self._open_arrays) > self.keep:
            self._open_arrays.popitem(last=False)
        return stored

    def shape(self, volume_id: str, array: ArrayName) -> tuple[int, ...]:
        """Return the shape of an array; only its checksum table is read.

        Raises:
            BadInput: the array is not in the store, or its checksum table is damaged.
        """
        *sides, last = self._open(volume_id, array).shape
        return (*sides, last // 2 if array in HALF_COMPLEX else last)

    def has(self, volume_id: str, array: ArrayName) -> bool:
        """Return whether the array is stored."""
        return self.path(volume_id, array).exists()

    def find_faults(self, volume_id: str, array: ArrayName, md5: str) -> list[str]:
        """Return the faults of an array whose file had this MD5 when it was written, one sentence each; empty if it is intact."""
        path = self.path(volume_id, array)
        if not path.exists():
            return ["missing"]
        if file_md5(path) == md5:
            return []
        try:
            stored = _OpenArray(path, array)
        except BadInput as error:
            return [error.what]
        faults = []
        for index in range(stored.shape[0]):
            try:
                stored.read([index])
            except BadInput as error:
                faults.append(error.what)
        return faults or ["damaged: bytes outside of the slices differ; all slices are intact"]

    def remove(self, volume_id: str) -> None:
        """Remove every file of a volume, including partly written files of a killed run; do nothing if there is none.

        The sidecar is removed first: a partly removed volume must not look complete.
        """
        files = self.path(volume_id, "voxels").parent.glob(f"*{volume_id}.*")
        for path in sorted(files, key=lambda path: path.suffix != ".json"):
            path.unlink(missing_ok=True)

    def volume_ids(self) -> Iterator[str]:
        """Yield every volume with a file of any kind, sorted; this includes volumes of which a killed run left only some files."""
        names = {path.name.removeprefix(".").partition(".")[0] for path in self.root.glob("??/??/*")}
        yield from sorted(names)
