"""NIfTI (``.nii``, ``.nii.gz``, ``.hdr`` with ``.img``): also the form in which image files of other formats are stored."""

from __future__ import annotations

import gzip
import io
import json
import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from numpy.typing import NDArray
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.annotations import lesion_boxes
from components.ingestion.formats.base import Role, WriteContext
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO, is_gzipped
from components.ingestion.formats.image_files import ImageFacts, ImageFileFormat, PlannedImage, canonical_volume
from components.ingestion.formats.nifti_header import (
    NiftiHeader,
    data_file,
    geometry,
    has_orientation,
    is_analyze,
    is_nifti,
    read_header,
)
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.source_folder import SourceFolder
from components.ingestion.volume import Box, Volume

logger = logging.getLogger(__name__)
MAX_TRAILING_BYTES = 1 << 20
"""Bytes that an untrusted file may have behind its voxels."""
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst", ".mgz")
"""Suffixes that nibabel decompresses, whatever the content is."""
_REPETITION_RANGE_S = 0.01, 30.0
"""Time between two volumes, with a wide margin."""
_NO_MAGNITUDE = "complex values: their magnitude is used"
_NO_UNIT = "no unit of length in the header: millimeters are assumed"


@dataclass(frozen=True)
class PlannedNifti(PlannedImage):
    """A NIfTI file to be written anew."""

    @override
    def load(self, context: WriteContext) -> Any:
        return load(self.source, context.card.layout.orientation)


class NiftiFormat(ImageFileFormat):
    """NIfTI-1 and NIfTI-2, plain or gzipped; Analyze 7.5 is recognized and refused."""

    name = "nifti"
    reads_gzipped = True

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return is_nifti(head) or is_analyze(head)

    @override
    def load(self, path: Path) -> Any:
        return load(path)

    @override
    def shape_of(self, path: Path) -> tuple[int, ...]:
        return read_header(path).shape

    @override
    def facts_of(self, path: Path) -> ImageFacts:
        header = read_header(path)
        _require_readable(header)
        notes = [_NO_MAGNITUDE] if header.stored_type.kind == "c" else []
        if not int(header.fields["xyzt_units"]) & 7:
            notes.append(_NO_UNIT)
        if len(header.shape) == 4 and (fault := _repetition(header)[1]):
            notes.append(fault)
        if has_orientation(header):
            notes += geometry(header).notes
        return ImageFacts(header.shape, header.not_image(), tuple(notes), has_orientation(header))

    @override
    def source_files(self, path: Path) -> tuple[Path, ...]:
        try:
            voxels = data_file(path, read_header(path))
        except BadInput:
            return (path,)
        return (path,) if voxels == path else (path, voxels)

    @override
    def plan_image(
        self, path: Path, target: str, role: Role, relative: str, folder: SourceFolder, channel: int | None
    ) -> PlannedImage:
        return PlannedNifti(path, target, role, self.name, channel)

    @override
    def read(self, files: Sequence[Path], sidecar: Path | None, anatomy: str | None) -> Volume:
        fields = json.loads(sidecar.read_text()) if sidecar is not None else {}
        return canonical_volume(load(files[0]), fields, anatomy, files[0].stem)

    @override
    def place_boxes(self, boxes_3d: Sequence[lesion_boxes.Box3D], files: Sequence[Path], volume: Volume) -> tuple[Box, ...]:
        stored_to_volume = np.linalg.inv(volume.affine) @ _stored_affine(files[0])
        return lesion_boxes.split_into_slices([box.transform(stored_to_volume) for box in boxes_3d])

    @override
    def read_described(self, path: Path, fields: Mapping[str, Any]) -> Volume:
        volume = super().read_described(path, fields)
        for note in self.facts_of(path).notes:
            if note != _NO_UNIT:
                logger.warning("%s: %s", path.name, note)
        return volume

    def count_voxels(self, path: Path, limit: int) -> int:
        """Return the voxels that the header claims; a gzipped file must not decompress to more bytes than that."""
        try:
            is_pair = read_header(path).is_pair
            voxels, excess = _claimed_voxels(path, limit)
        except Exception:  # nibabel and gzip raise many types for damaged files
            raise BadInput("a damaged NIfTI file", where="image", remedy="get the file again") from None
        if is_pair:
            raise BadInput("a header whose voxels are in another file", where="image", remedy="send one .nii file")
        if excess:
            raise BadInput("more bytes than the header claims", where="image", remedy="get the file again")
        return voxels


FORMAT = NiftiFormat()


def load(path: Path, orientation: str | None = None) -> Any:
    """Load an image: stored values with their scaling (complex values as magnitude), and its position in millimeters.

    Args:
        orientation: see :func:`components.ingestion.formats.nifti_header.geometry`.

    Returns:
        A nibabel image (x, y, z[, repeats]) with a header of shape, type and position alone.

    Raises:
        BadInput: not NIfTI, or shorter than its header claims.
        UnsupportedInput: Analyze, colors, vectors, or no usable position.
    """
    try:
        header = read_header(path)
        _require_readable(header)
        affine = geometry(header, orientation).affine
        values = _open_values(path, header)
        np.asanyarray(values.get_unscaled() if isinstance(values, ArrayProxy) else values)
    except BadInput as error:
        if isinstance(error, UnsupportedInput):
            raise UnsupportedInput(error.kind, error.what, where=path.name, remedy=error.remedy) from None
        raise BadInput(error.what, where=path.name, remedy=error.remedy) from None
    except OSError:
        raise
    except Exception as error:
        raise BadInput(f"NIfTI cannot be read: {type(error).__name__}", where=path.name, remedy="get the file again") from None
    image_class = nib.Nifti2Image if max(values.shape) > np.iinfo(np.int16).max else nib.Nifti1Image
    image = image_class(values, affine, dtype=values.dtype)
    image.header.set_xyzt_units("mm", "sec")
    if len(values.shape) == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], _repetition(header)[0]))
    return image


def _require_readable(header: NiftiHeader) -> None:
    """Require NIfTI of three or four dimensions whose values are numbers.

    Raises:
        UnsupportedInput: Analyze 7.5, colors, vectors, or another number of dimensions.
    """
    if header.is_analyze:
        raise UnsupportedInput(
            "unsupported",
            "Analyze 7.5, which does not state left and right",
            remedy="convert it to NIfTI with the orientation that its source had",
        )
    shape = header.shape
    _ = header.stored_type
    if len(shape) > 4:
        values = math.prod(shape[4:])
        raise UnsupportedInput(
            "unsupported", f"vectors: {values} values for each voxel along the fifth axis", remedy="give an image of one value"
        )
    if len(shape) < 3:
        raise UnsupportedInput("unsupported", f"NIfTI of {len(shape)} dimensions", remedy="give images of 3 dimensions, or of 4")


def _open_values(path: Path, header: NiftiHeader) -> Any:
    """Return the values: nibabel's proxy, which scales on access, or an array for types that are not stored as they are.

    Raises:
        BadInput: no data file, or one with fewer voxels than the header claims.
    """
    voxels = data_file(path, header)
    if not voxels.is_file():
        raise BadInput("a NIfTI header without its .img file beside it", remedy="give both files")
    stored, shape = header.stored_type, header.shape
    needed = header.offset + math.prod(shape) * stored.itemsize
    if needed > voxels.stat().st_size * (MAX_DEFLATE_RATIO if is_gzipped(voxels) else 1):
        raise BadInput("fewer voxels than the NIfTI header claims", remedy="get the file again")
    proxy = ArrayProxy(_open_content(voxels, needed), (shape, stored, header.offset, *header.scaling))
    if stored.kind == "c":
        return np.abs(np.asanyarray(proxy)).astype(np.float32 if stored.itemsize == 8 else np.float64)
    return np.asarray(proxy, dtype=np.float64) if stored.kind == "f" and stored.itemsize > 8 else proxy


def _open_content(path: Path, size: int) -> str | io.BytesIO:
    """Return what nibabel can read the first ``size`` bytes from: the path, unless its suffix is wrong about its compression."""
    if is_gzipped(path):
        return io.BytesIO(_decompress(path, size))
    return io.BytesIO(path.read_bytes()) if path.suffix.lower() in _COMPRESSED_SUFFIXES else str(path)


def _decompress(path: Path, size: int) -> bytes:
    """Return the first ``size`` decompressed bytes of a gzipped file whose checksum is right.

    Raises:
        BadInput: damaged, cut short, or shorter than ``size``.
    """
    try:
        with gzip.open(path) as stream:
            content = stream.read(size)
            stream.read(MAX_TRAILING_BYTES)  # up to the checksum, unless much follows
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise BadInput("a gzipped file that is damaged or cut short", remedy="get the file again") from None
    if len(content) < size:
        raise BadInput("fewer voxels than the NIfTI header claims", remedy="get the file again")
    return content


def _repetition(header: NiftiHeader) -> tuple[float, str]:
    """Return the step along the fourth axis in seconds (``xyzt_units & 56``), and how it was interpreted; 0 where it is no time."""
    step, unit = float(header.fields["pixdim"][4]), int(header.fields["xyzt_units"]) & 56
    seconds = step * {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}.get(unit, 0.0)
    if not (math.isfinite(seconds) and seconds > 0):
        return 0.0, ""
    shortest, longest = _REPETITION_RANGE_S
    if seconds > longest and shortest <= seconds / 1000 <= longest:
        return seconds / 1000, "a time step in milliseconds, where the header says seconds or nothing: converted"
    if shortest <= seconds <= longest:
        return seconds, ""
    return 0.0, "an implausible time step, which is not used"


def _stored_affine(path: Path) -> NDArray[np.float64]:
    """Return the affine (slice, row, column, 1) -> RAS+ mm of a file under ``data/`` in its storage order."""
    return np.asarray(geometry(read_header(path)).affine[:, [2, 1, 0, 3]], dtype=np.float64)


def _claimed_voxels(path: Path, limit: int) -> tuple[int, bool]:
    """Return the voxels that a header claims, and whether a gzipped file decompresses to more (checked up to the limit)."""
    header = read_header(path)
    voxels = math.prod(header.shape)
    if not is_gzipped(path) or voxels > limit:
        return voxels, False
    remaining = voxels * np.dtype(header.fields.get_data_dtype()).itemsize + header.offset + MAX_TRAILING_BYTES
    with gzip.open(path) as stream:
        while remaining >= 0 and (chunk := stream.read(1 << 20)):
            remaining -= len(chunk)
    return voxels, remaining < 0
