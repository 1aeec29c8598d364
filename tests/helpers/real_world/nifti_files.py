"""NIfTI files with the headers that dcm2niix, SPM, FSL, nibabel and parrec2nii write."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
_NIFTI1_OFFSET_OF_SCALING = 112


def nifti_bytes(
    values: NDArray[Any],
    affine: NDArray[np.float64] = AFFINE,
    *,
    slope: float | None = None,
    inter: float = 0.0,
    big_endian: bool = False,
    version: int = 1,
) -> bytes:
    """Return a single-file NIfTI image of stored values; ``slope`` and ``inter`` are written as given (NaN, 0 and negative, too).

    Args:
        slope: ``scl_slope``; None leaves nibabel's default (no scaling).
        version: 1 or 2.
    """
    image_class, header_class = ((nib.Nifti1Image, nib.Nifti1Header), (nib.Nifti2Image, nib.Nifti2Header))[version - 1]
    header = header_class(endianness=">" if big_endian else "<")  # type: ignore[no-untyped-call]
    content = bytearray(image_class(values, affine, header=header, dtype=values.dtype).to_bytes())
    if slope is not None:
        order = ">" if big_endian else "<"
        start, kind = (_NIFTI1_OFFSET_OF_SCALING, f"{order}f4") if version == 1 else (176, f"{order}f8")
        packed = np.array([slope, inter], kind).tobytes()
        content[start : start + len(packed)] = packed
    return bytes(content)


def write_nifti_file(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = AFFINE, **header: Any) -> Path:
    """Write an image under a name that ends in ``.nii`` or ``.nii.gz`` (see :func:`nifti_bytes`); return the path."""
    content = nifti_bytes(values, affine, **header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
