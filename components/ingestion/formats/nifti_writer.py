"""De-identified NIfTI files: stored values and geometry under a fresh header."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from components.errors import BadInput
from components.files import atomic_file
from components.ingestion.formats.orientation import round_affine


def content_md5(stored: bytes, *properties: Any) -> str:
    """Return the MD5 of stored values and their properties (shape, type, scale): the same for copies under other names.

    It identifies content; it is not a security measure.
    """
    total = hashlib.md5(repr(properties).encode(), usedforsecurity=False)
    total.update(stored)
    return total.hexdigest()


def select_channel(image: Any, index: int) -> Any:
    """Return one of the images along the fourth axis, with stored values and scaling unchanged."""
    raw = _stored_values(image)
    slope, intercept = image.header.get_slope_inter()
    channel = nib.Nifti1Image(raw[..., index], image.affine, dtype=raw.dtype)
    channel.header.set_slope_inter(slope if slope is not None else 1, intercept if intercept is not None else 0)
    return channel


def write_nifti(image: Any, target: Path, is_label: bool = False) -> str:
    """Write values and geometry, and nothing else of the header: no description, file name, extension or compression (compressed
    bytes differ between machines). Scaled integers stay as stored.

    Returns:
        MD5 of shape, type and stored values.

    Raises:
        BadInput: every voxel has the same value.
    """
    raw = _stored_values(image)
    slope, intercept = image.header.get_slope_inter() if hasattr(image.header, "get_slope_inter") else (None, None)
    clean = nib.Nifti1Image(raw, round_affine(image.affine), dtype=raw.dtype)
    _fill_header(clean.header, image, slope, intercept)
    if raw.size == 0 or (not is_label and raw.min() == raw.max()):
        raise BadInput("no signal: every voxel has the same value", where=target.name, remedy="export the series again")
    # nibabel's own writer would rescale: header and stored values are written unchanged.
    stored = np.asarray(raw, dtype=clean.header.get_data_dtype()).tobytes(order="F")
    with atomic_file(target) as temporary, temporary.open("wb") as stream:
        clean.header.write_to(stream)  # 348 bytes, and 4 that declare no extension
        stream.write(stored)
    return content_md5(stored, raw.shape, raw.dtype.name, slope, intercept)


def _fill_header(header: Any, image: Any, slope: float | None, intercept: float | None) -> None:
    """Set units, time step, scaling, offset and magic of a fresh header."""
    for name in ("b", "c", "d"):  # qform code 0 disables the quaternion; its last bits depend on the linear algebra library
        header[f"quatern_{name}"] = 0
    header.set_xyzt_units("mm", "sec")
    if len(image.shape) == 4:
        header.set_zooms((*header.get_zooms()[:3], image.header.get_zooms()[3]))
    header.set_slope_inter(slope if slope is not None else 1, intercept if intercept is not None else 0)
    header["vox_offset"], header["magic"] = 352, b"n+1"


def _stored_values(image: Any) -> Any:
    """Return the array of a NIfTI image without its scaling applied."""
    return np.asanyarray(image.dataobj.get_unscaled() if hasattr(image.dataobj, "get_unscaled") else image.dataobj)
