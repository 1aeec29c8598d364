"""What a stranger's file may ask of this machine: so much memory, and no file but itself."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.errors import BadInput
from components.ingestion.formats.sniff import kind_of

SLACK = 1 << 20
"""Bytes that a NIfTI file may have behind its voxels."""


@dataclass(frozen=True)
class Limits:
    """Of one request.

    Attributes:
        request_bytes: of its body; images: of its rows; instruction_characters: of each question.
        voxels: of an image once it is unpacked (all frames, coils and channels).
        queue: requests that wait while one is answered; seconds: for an answer.
    """

    request_bytes: int = 256 * 2**20
    images: int = 4
    instruction_characters: int = 2000
    voxels: int = 2**27
    queue: int = 8
    seconds: float = 120.0


def require_modest(path: Path, limits: Limits) -> None:
    """Look at a file's claims before it is read.

    Raises:
        BadInput: more voxels than allowed, a damaged header, or a file that refers to other files.
    """
    kind = kind_of(path)
    if kind == "hdf5":
        voxels = _hdf5_values(path)
    elif kind == "dicom":
        voxels = _dicom_values(path)
    elif kind == "nifti":
        voxels = _nifti_values(path, limits.voxels)
    elif kind == "metaimage":
        voxels = path.stat().st_size
        if b"ElementDataFile = LOCAL" not in path.read_bytes()[: 1 << 16]:
            raise BadInput("a header that names another file", where="image", remedy="send one .mha with its voxels (LOCAL)")
    else:
        voxels = path.stat().st_size
    if voxels > limits.voxels:
        raise BadInput("an image of too many voxels", where="image", remedy=f"at most {limits.voxels} in all")


def _nifti_values(path: Path, most: int) -> int:
    """Voxels that a NIfTI header claims; a packed file may not unpack to more than it claims."""
    import nibabel as nib

    packed = path.read_bytes()[:2] == b"\x1f\x8b"
    damaged = BadInput("a damaged NIfTI file", where="image", remedy="get the file again")
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            head = stream.read(544)
            kind = nib.Nifti2Header if head[4:8] in (b"n+2\0", b"ni2\0") else nib.Nifti1Header
            header = kind.from_fileobj(io.BytesIO(head), check=False)
            voxels = math.prod(max(int(side), 0) for side in header.get_data_shape())
            if not packed or voxels > most:
                return voxels
            room = voxels * header.get_data_dtype().itemsize + max(int(header["vox_offset"]), 0) + SLACK - len(head)
            while room >= 0 and (piece := stream.read(1 << 20)):
                room -= len(piece)
    except Exception:  # whatever a damaged header makes of nibabel, or a damaged file of gzip
        raise damaged from None
    if room < 0:
        raise BadInput("more bytes than the header says", where="image", remedy=damaged.remedy)
    return voxels


def _dicom_values(path: Path) -> int:
    from components.ingestion.formats.dicom.reader import read_header

    try:
        head = read_header(path)
        return int(head.get("Rows") or 0) * int(head.get("Columns") or 0) * int(head.get("NumberOfFrames") or 1)
    except BadInput:
        raise
    except Exception:  # whatever a damaged header makes of pydicom
        raise BadInput("a damaged DICOM header", where="image", remedy="get the file again") from None


def _hdf5_values(path: Path) -> int:
    """Values of all data sets, none of which may lie in another file."""
    import h5py

    try:
        with h5py.File(path) as file:
            return sum(_sizes(file))
    except BadInput:
        raise
    except Exception:  # whatever a damaged file makes of h5py
        raise BadInput("a damaged HDF5 file", where="image", remedy="get the file again") from None


def _sizes(group: Any) -> Iterator[int]:
    import h5py

    elsewhere = BadInput("a file that refers to other files", where="image", remedy="send one HDF5 file that holds its data")
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
            raise elsewhere
        if isinstance(group.get(name, getlink=True), h5py.SoftLink):
            continue
        found = group[name]
        if isinstance(found, h5py.Group):
            yield from _sizes(found)
        elif isinstance(found, h5py.Dataset):
            if found.external or found.is_virtual:
                raise elsewhere
            yield int(found.size or 0)
