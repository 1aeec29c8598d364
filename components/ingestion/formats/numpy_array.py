"""NumPy arrays of one examination (MRNet: slices, rows, columns), whose plane and spacing only the card can tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from components.errors import BadInput

DIRECTIONS = {
    "axial": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "coronal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
}
"""Plane -> where slices, rows and columns lead (RAS+), as usually shown: left is the patient's right, top front or head."""


def shape_of(path: Path) -> tuple[int, ...]:
    """Shape of an array, from its header alone.

    Raises:
        BadInput: no plain array.
    """
    return tuple(_mapped(path).shape)


def load(path: Path, plane: str, spacing_mm: tuple[float, float, float]) -> Any:
    """An array (slices, rows, columns) as a NIfTI image around the origin.

    Raises:
        BadInput: pickled objects, another number of axes, or values that are no real numbers.
    """
    import nibabel as nib

    values = _mapped(path)
    if values.ndim != 3 or min(values.shape) < 1 or values.dtype.kind not in "uif":
        raise BadInput(
            f"an array of {values.shape} {values.dtype.name}, not (slices, rows, columns) of numbers",
            where=path.name,
            remedy="give one examination in each file",
        )
    values = np.asarray(values)
    if values.dtype in (np.float16, np.int64, np.uint64):
        values = values.astype(np.float32)
    directions = np.array(DIRECTIONS[plane], dtype=np.float64).T * np.array(spacing_mm)  # columns: slice, row, column
    affine = np.eye(4)
    affine[:3, :3] = directions[:, ::-1]
    affine[:3, 3] = -directions @ ((np.array(values.shape) - 1) / 2)
    return nib.Nifti1Image(values.transpose(2, 1, 0), affine, dtype=values.dtype)


def _mapped(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError, SyntaxError, TypeError, OverflowError):
        raise BadInput(
            "the NumPy file cannot be read, or holds Python objects", where=path.name, remedy="save a plain array"
        ) from None
