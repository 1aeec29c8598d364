"""NIfTI images: written clean, read into the canonical orientation."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.ingestion import headers
from components.ingestion.volume import Acquisition

THICK = 1.5
"""A slice axis is at least this much coarser than the finest other; else the volume counts as axial."""
_ORIENTATION = {0: "LIP", 1: "PIL", 2: "SPL"}
"""Slice axis (0 x, 1 y, 2 z) -> where index d, h and w lead: rows run to posterior or inferior, columns to left or posterior."""


def load(path: Path) -> Any:
    """Open an image.

    Raises:
        BadInput: not NIfTI, or shorter than its header says.
    """
    try:
        image: Any = nib.load(path) if path.name.endswith((".nii", ".nii.gz")) else _from_bytes(path.read_bytes())
        np.asanyarray(image.dataobj)
    except Exception as error:
        raise BadInput(f"NIfTI cannot be read: {type(error).__name__}", where=path.name, remedy="get the file again") from None
    if len(image.shape) not in (3, 4):
        raise BadInput(f"NIfTI of {len(image.shape)} dimensions", where=path.name, remedy="give images of 3 or 4 dimensions")
    return image


def _from_bytes(content: bytes) -> Any:
    """An image whose file name does not say what it is, which nibabel's loader goes by."""
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return (nib.Nifti2Image if content[4:8] == b"n+2\0" else nib.Nifti1Image).from_bytes(content)


def write_clean(image: Any, target: Path) -> None:
    """Write values and geometry, and nothing else of the header: no description, file name, extension or compression (whose bytes
    differ between machines). Scaled integers stay as they are stored."""
    raw = np.asanyarray(image.dataobj.get_unscaled() if hasattr(image.dataobj, "get_unscaled") else image.dataobj)
    clean = nib.Nifti1Image(raw, image.affine)
    clean.header.set_xyzt_units("mm", "sec")
    if len(image.shape) == 4:
        clean.header.set_zooms((*clean.header.get_zooms()[:3], image.header.get_zooms()[3]))
    slope, intercept = image.header.get_slope_inter() if hasattr(image.header, "get_slope_inter") else (None, None)
    clean.header.set_slope_inter(slope if slope is not None else 1, intercept if intercept is not None else 0)
    clean.header["vox_offset"], clean.header["magic"] = 352, b"n+1"
    # nibabel's own writer would scale anew: header and stored values are written as they are.
    if raw.size == 0 or raw.min() == raw.max():
        raise BadInput("no signal: every voxel has the same value", where=target.name, remedy="export the series again")
    with atomic_file(target) as temporary, temporary.open("wb") as stream:
        clean.header.write_to(stream)  # 348 bytes, and 4 that say there is no extension
        stream.write(np.asarray(raw, dtype=clean.header.get_data_dtype()).tobytes(order="F"))


def canonical(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values (D, H, W) and the affine (d, h, w, 1) -> RAS+ mm. Of a series in time, the first.

    The slice axis is the coarse one of an anisotropic image, else inferior-superior.
    """
    values = np.asanyarray(image.dataobj)
    values = values[..., 0] if values.ndim == 4 else values
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    world_axis = nib.orientations.io_orientation(image.affine)[:, 0].astype(int)
    coarse = int(spacing.argmax())
    slice_axis = int(world_axis[coarse]) if spacing[coarse] >= THICK * spacing.min() else 2
    wanted = nib.orientations.axcodes2ornt(tuple(_ORIENTATION[slice_axis]))
    moved = nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), wanted)
    affine = image.affine @ nib.orientations.inv_ornt_aff(moved, values.shape)
    return nib.orientations.apply_orientation(values, moved), np.asarray(affine, dtype=np.float64)


def read(path: Path, sidecar: Path | None, anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.float64], Acquisition]:
    """Voxels, affine and acquisition of one image."""
    values, affine = canonical(load(path))
    fields = json.loads(sidecar.read_text()) if sidecar is not None else {}
    return np.ascontiguousarray(values, dtype=np.float32), affine, headers.from_sidecar(fields, affine, anatomy)


def read_labels(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A label map in the orientation of its image.

    Raises:
        BadInput: another shape than the image, or values that are no labels.
    """
    values, _ = canonical(load(path))
    if values.shape != shape:
        raise BadInput(
            f"label map of {values.shape} for an image of {shape}", where=path.name, remedy="resample it to the image's grid"
        )  # fmt: skip
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > 255:
        raise BadInput("label values must be whole numbers from 0 to 255", where=path.name, remedy="mend the label map")
    return np.asarray(values, dtype=np.uint8)


def read_tissue_maps(paths: dict[int, Path], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Labels from probability maps: the most probable tissue where its probability is at least one half."""
    labels, best = np.zeros(shape, dtype=np.uint8), np.full(shape, 0.5)
    for value, path in sorted(paths.items()):
        probability, _ = canonical(load(path))
        if probability.shape != shape:
            raise BadInput(f"tissue map of {probability.shape}, image of {shape}", where=path.name, remedy="use the same grid")
        probability = probability / max(float(probability.max()), 1e-12)
        labels = np.where(probability >= best, value, labels).astype(np.uint8)
        best = np.maximum(best, probability)
    return labels
