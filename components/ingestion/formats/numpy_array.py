"""NumPy arrays of one examination (MRNet: slices, rows, columns); only the card states their plane and spacing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from components.errors import BadInput
from components.ingestion.formats.base import Role, WriteContext
from components.ingestion.formats.image_files import ImageFileFormat, ImageHeader, PlannedImage
from components.ingestion.source_folder import SourceFolder

DIRECTIONS = {
    "axial": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "coronal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
}
"""Plane -> directions of slices, rows, columns (RAS+) in radiological display: left is the patient's right, top front or head."""
_MAGIC = b"\x93NUMPY"
_STORED_TYPES = {"f2": np.float32, "i8": np.float32, "u8": np.float32, "f16": np.float64, "f12": np.float64}
"""Type of an array in either byte order -> type in which it is stored, where few readers of NIfTI know it."""


@dataclass(frozen=True)
class PlannedArray(PlannedImage):
    """An array to be written as NIfTI.

    Attributes:
        plane: "axial", "sagittal" or "coronal".
    """

    plane: str = "axial"

    @override
    def load(self, context: WriteContext) -> Any:
        return load(self.source, self.plane, context.card.layout.spacing_mm)


class NumpyArrayFormat(ImageFileFormat):
    """Arrays (slices, rows, columns) in ``.npy`` files."""

    name = "numpy_array"

    @override
    def sniff(self, head: bytes, path: Path) -> bool:
        return head.startswith(_MAGIC)

    @override
    def load(self, path: Path) -> Any:
        return load(path, "axial", (1.0, 1.0, 1.0))

    @override
    def shape_of(self, path: Path) -> tuple[int, ...]:
        return tuple(_map_array(path).shape[::-1])

    @override
    def plan_image(
        self, path: Path, target: str, role: Role, relative: str, folder: SourceFolder, channel: int | None
    ) -> PlannedImage:
        plane = "axial"
        if role == "image":
            plane = next((plane for text, plane in sorted(folder.layout.planes.items()) if text in relative), "axial")
        return PlannedArray(path, target, role, self.name, channel, plane)

    @override
    def _channels(self, header: ImageHeader, relative: str, folder: SourceFolder) -> list[int | None]:
        return [None]


FORMAT = NumpyArrayFormat()


def load(path: Path, plane: str, spacing_mm: tuple[float, float, float]) -> Any:
    """Load an array (slices, rows, columns) as a NIfTI image that is centered at the origin.

    Args:
        spacing_mm: distance between slices, rows and columns.

    Raises:
        BadInput: pickled objects, another number of axes, or values that are no real numbers.
    """
    import nibabel as nib

    values = _map_array(path)
    if values.ndim != 3 or min(values.shape) < 1 or values.dtype.kind not in "uif":
        raise BadInput(
            f"an array of {values.shape} {values.dtype.name}, not (slices, rows, columns) of numbers",
            where=path.name,
            remedy="give one examination in each file",
        )
    values = np.asarray(values)
    values = values.astype(_STORED_TYPES.get(values.dtype.str[1:], values.dtype.newbyteorder("=")), copy=False)
    directions = np.array(DIRECTIONS[plane], dtype=np.float64).T * np.array(spacing_mm)  # columns: slice, row, column
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1]
    affine[:3, 3] = -directions @ ((np.array(values.shape) - 1) / 2)
    return nib.Nifti1Image(values.transpose(2, 1, 0), affine, dtype=values.dtype)


def _map_array(path: Path) -> Any:
    """Memory-map an array.

    Raises:
        BadInput: no plain array.
    """
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError):
        raise BadInput(
            "the NumPy file cannot be read, or contains Python objects", where=path.name, remedy="save a plain array"
        ) from None
