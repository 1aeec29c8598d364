"""NIfTI (``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``): also the form in which image files of other formats are stored."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.annotations import lesion_boxes
from components.ingestion.formats.gzipped import GZIP_MAGIC, MAX_DEFLATE_RATIO, is_gzipped
from components.ingestion.formats.image_files import ImageFileFormat, canonical_volume
from components.ingestion.volume import Box, Volume

VOXEL_SIZE_RANGE_MM = 1e-3, 1e3
"""Plausible sizes of a voxel; others come from a damaged header."""
MAX_TRAILING_BYTES = 1 << 20
"""Bytes that an untrusted file may have behind its voxels."""
_HEADER_BYTES = 544
"""Size of a NIfTI-2 header with its extension flag."""
_NIFTI1_MAGIC, _NIFTI2_MAGIC = (b"n+1\0", b"ni1\0"), (b"n+2\0", b"ni2\0")


class NiftiFormat(ImageFileFormat):
    """NIfTI-1 and NIfTI-2, plain or gzipped."""

    name = "nifti"
    reads_gzipped = True

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return head[344:348] in _NIFTI1_MAGIC or head[4:8] in _NIFTI2_MAGIC

    @override
    def load(self, path: Path) -> Any:
        return load(path)

    def shape_of(self, path: Path) -> tuple[int, ...]:
        """Return the shape of an image, from its header alone where nibabel recognizes its file name."""
        try:
            return tuple(nib.load(path).shape)  # type: ignore[attr-defined]
        except Exception:
            return tuple(load(path).shape)

    @override
    def source_files(self, path: Path) -> tuple[Path, ...]:
        return (path, path.with_suffix(".img")) if path.suffix == ".hdr" else (path,)

    @override
    def read(self, files: Sequence[Path], sidecar: Path | None, anatomy: str | None) -> Volume:
        fields = json.loads(sidecar.read_text()) if sidecar is not None else {}
        return canonical_volume(load(files[0]), fields, anatomy, files[0].stem)

    @override
    def place_boxes(self, boxes_3d: Sequence[lesion_boxes.Box3D], files: Sequence[Path], volume: Volume) -> tuple[Box, ...]:
        stored_to_volume = np.linalg.inv(volume.affine) @ _stored_affine(files[0])
        return lesion_boxes.split_into_slices([box.transform(stored_to_volume) for box in boxes_3d])

    def count_voxels(self, path: Path, limit: int) -> int:
        """Return the voxels that the header claims; a gzipped file must not decompress to more bytes than that."""
        try:
            voxels, excess = _claimed_voxels(path, limit)
        except Exception:  # nibabel and gzip raise many types for damaged files
            raise BadInput("a damaged NIfTI file", where="image", remedy="get the file again") from None
        if excess:
            raise BadInput("more bytes than the header claims", where="image", remedy="get the file again")
        return voxels


FORMAT = NiftiFormat()


def load(path: Path) -> Any:
    """Load an image with nibabel, voxels included.

    Raises:
        BadInput: not NIfTI, shorter than its header claims, or without a usable geometry.
    """
    try:
        image: Any = nib.load(path) if path.name.endswith((".nii", ".nii.gz", ".hdr")) else _from_bytes(path.read_bytes())
        _check_size(image, path)
        np.asanyarray(image.dataobj)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"NIfTI cannot be read: {type(error).__name__}", where=path.name, remedy="get the file again") from None
    if len(image.shape) not in (3, 4):
        raise BadInput(f"NIfTI of {len(image.shape)} dimensions", where=path.name, remedy="give images of 3 or 4 dimensions")
    sizes = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
    smallest, largest = VOXEL_SIZE_RANGE_MM
    if not (np.isfinite(image.affine).all() and smallest <= sizes.min() and sizes.max() <= largest):
        raise BadInput("an implausible voxel size", where=path.name, remedy="export it again with its geometry")
    return image


def _from_bytes(content: bytes) -> Any:
    """Parse an image whose file name has no NIfTI suffix, which nibabel's loader requires."""
    content = gzip.decompress(content) if content.startswith(GZIP_MAGIC) else content
    return (nib.Nifti2Image if content[4:8] == b"n+2\0" else nib.Nifti1Image).from_bytes(content)


def _check_size(image: Any, path: Path) -> None:
    """Reject a header that claims more voxels than the file can contain, before memory is allocated for them."""
    claimed = int(np.prod(image.shape, dtype=object)) * image.header.get_data_dtype().itemsize
    data_file = path.with_suffix(".img") if path.suffix == ".hdr" else path
    if claimed > data_file.stat().st_size * (MAX_DEFLATE_RATIO if is_gzipped(data_file) else 1):
        raise BadInput("fewer voxels than the NIfTI header claims", where=path.name, remedy="get the file again")


def _stored_affine(path: Path) -> NDArray[np.float64]:
    """Return the affine (slice, row, column, 1) -> RAS+ mm of a file under ``data/`` in its storage order."""
    return np.asarray(nib.load(path).affine[:, [2, 1, 0, 3]], dtype=np.float64)  # type: ignore[attr-defined]


def _claimed_voxels(path: Path, limit: int) -> tuple[int, bool]:
    """Return the voxels that a header claims, and whether a gzipped file decompresses to more (checked up to the limit)."""
    gzipped = is_gzipped(path)
    with gzip.open(path) if gzipped else path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
        header_class = nib.Nifti2Header if head[4:8] in _NIFTI2_MAGIC else nib.Nifti1Header
        header: Any = header_class.from_fileobj(io.BytesIO(head), check=False)
        voxels = math.prod(max(int(side), 0) for side in header.get_data_shape())
        if not gzipped or voxels > limit:
            return voxels, False
        claimed_bytes = voxels * header.get_data_dtype().itemsize + max(int(header["vox_offset"]), 0)
        remaining = claimed_bytes + MAX_TRAILING_BYTES - len(head)
        while remaining >= 0 and (chunk := stream.read(1 << 20)):
            remaining -= len(chunk)
    return voxels, remaining < 0
