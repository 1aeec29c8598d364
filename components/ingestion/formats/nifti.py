"""NIfTI images: written clean, read into the canonical orientation."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.files import atomic_file
from components.ingestion import acquisition_headers
from components.ingestion.formats.gzipped import MAX_DEFLATE_RATIO
from components.ingestion.quarantine import UnsupportedInput
from components.ingestion.volume import Acquisition

THICK = 1.5
"""A slice axis is at least this much coarser than the finest other; else the volume counts as axial."""
_ORIENTATION = {0: "LIP", 1: "PIL", 2: "SPL"}
"""Slice axis (0 x, 1 y, 2 z) -> where index d, h and w lead: rows run to posterior or inferior, columns to left or posterior."""
SIDES_MM = 1e-3, 1e3
"""Sides of a voxel that are believed; others are a damaged header."""


def load(path: Path) -> Any:
    """Open an image.

    Raises:
        BadInput: not NIfTI, shorter than its header says, or without a usable geometry.
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
    sides = np.linalg.norm(np.asarray(image.affine)[:3, :3], axis=0)
    if not (np.isfinite(image.affine).all() and SIDES_MM[0] <= sides.min() and sides.max() <= SIDES_MM[1]):
        raise BadInput("voxels of no possible size", where=path.name, remedy="export it again with its geometry")
    return image


def shape_of(path: Path) -> tuple[int, ...]:
    """Shape of an image, from its header alone where its name says what it is.

    Raises:
        BadInput: not NIfTI.
    """
    try:
        return tuple(nib.load(path).shape)  # type: ignore[attr-defined]
    except Exception:
        return tuple(load(path).shape)


def stored_affine(path: Path) -> NDArray[np.float64]:
    """(slice, row, column, 1) of a file under ``data/``, as it is stored, -> RAS+ mm."""
    return np.asarray(nib.load(path).affine[:, [2, 1, 0, 3]], dtype=np.float64)  # type: ignore[attr-defined]


def _from_bytes(content: bytes) -> Any:
    """An image whose file name does not say what it is, which nibabel's loader goes by."""
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    return (nib.Nifti2Image if content[4:8] == b"n+2\0" else nib.Nifti1Image).from_bytes(content)


def _check_size(image: Any, path: Path) -> None:
    """Refuse a header that claims more voxels than the file can hold, before memory is set aside for them."""
    claimed = int(np.prod(image.shape, dtype=object)) * image.header.get_data_dtype().itemsize
    beside = path.with_suffix(".img") if path.suffix == ".hdr" else path
    with beside.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if claimed > beside.stat().st_size * (MAX_DEFLATE_RATIO if packed else 1):
        raise BadInput("fewer voxels than the NIfTI header says", where=path.name, remedy="get the file again")


def settled(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """An affine without what rounding leaves of products that are zero, which differs between processors: to 1e-9 mm."""
    return np.asarray(np.round(affine, 9) + 0.0)


def channel(image: Any, index: int) -> Any:
    """One of the images along the fourth axis, stored values and scaling as they are."""
    raw = np.asanyarray(image.dataobj.get_unscaled() if hasattr(image.dataobj, "get_unscaled") else image.dataobj)
    slope, intercept = image.header.get_slope_inter()
    one = nib.Nifti1Image(raw[..., index], image.affine, dtype=raw.dtype)
    one.header.set_slope_inter(slope if slope is not None else 1, intercept if intercept is not None else 0)
    return one


def write_clean(image: Any, target: Path) -> str:
    """Write values and geometry, and nothing else of the header: no description, file name, extension or compression (whose bytes
    differ between machines). Scaled integers stay as they are stored.

    Returns:
        MD5 of shape, type and stored values.

    Raises:
        BadInput: every voxel has the same value.
    """
    raw = np.asanyarray(image.dataobj.get_unscaled() if hasattr(image.dataobj, "get_unscaled") else image.dataobj)
    clean = nib.Nifti1Image(raw, settled(image.affine), dtype=raw.dtype)
    for name in ("b", "c", "d"):  # the quaternion, by its code not to be used: its last bits are the linear algebra library's
        clean.header[f"quatern_{name}"] = 0
    clean.header.set_xyzt_units("mm", "sec")
    if len(image.shape) == 4:
        clean.header.set_zooms((*clean.header.get_zooms()[:3], image.header.get_zooms()[3]))
    slope, intercept = image.header.get_slope_inter() if hasattr(image.header, "get_slope_inter") else (None, None)
    clean.header.set_slope_inter(slope if slope is not None else 1, intercept if intercept is not None else 0)
    clean.header["vox_offset"], clean.header["magic"] = 352, b"n+1"
    # nibabel's own writer would scale anew: header and stored values are written as they are.
    if raw.size == 0 or raw.min() == raw.max():
        raise BadInput("no signal: every voxel has the same value", where=target.name, remedy="export the series again")
    stored = np.asarray(raw, dtype=clean.header.get_data_dtype()).tobytes(order="F")
    with atomic_file(target) as temporary, temporary.open("wb") as stream:
        clean.header.write_to(stream)  # 348 bytes, and 4 that say there is no extension
        stream.write(stored)
    return content_md5(stored, raw.shape, raw.dtype.name, slope, intercept)


def content_md5(stored: bytes, *about: Any) -> str:
    """MD5 of what an image shows (a content sum, not a security measure): the same for copies under other names."""
    total = hashlib.md5(repr(about).encode(), usedforsecurity=False)
    total.update(stored)
    return total.hexdigest()


def canonical(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values (D, H, W) and the affine (d, h, w, 1) -> RAS+ mm. Of a series in time, the first.

    The slice axis is the coarse one of an anisotropic image, else inferior-superior.
    """
    values = np.asanyarray(image.dataobj)
    values = values[..., 0] if values.ndim == 4 else values
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    coarse = int(spacing.argmax())
    return _oriented(values, image.affine, coarse if spacing[coarse] >= THICK * spacing.min() else None)


def slice_first(values: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Values (slices, ., ., ...) whose slices stay slices, rows and columns turned the usual way up, and their affine."""
    return _oriented(values, affine, 0)


def _oriented(values: NDArray[Any], affine: NDArray[np.float64], across: int | None) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn the first three axes to slices, rows, columns; ``across`` is the slice axis, None = inferior-superior."""
    now = nib.orientations.io_orientation(affine)
    wanted = nib.orientations.axcodes2ornt(tuple(_ORIENTATION[int(now[across, 0]) if across is not None else 2]))
    moved = nib.orientations.ornt_transform(now, wanted)
    turned = affine @ nib.orientations.inv_ornt_aff(moved, values.shape[:3])
    return nib.orientations.apply_orientation(values, moved), np.asarray(turned, dtype=np.float64)


def read(path: Path, sidecar: Path | None, anatomy: str | None) -> tuple[NDArray[np.float32], NDArray[np.float64], Acquisition]:
    """Voxels, affine and acquisition of one image."""
    return volume_of(load(path), json.loads(sidecar.read_text()) if sidecar is not None else {}, anatomy)


def volume_of(
    image: Any, fields: Mapping[str, Any], anatomy: str | None
) -> tuple[NDArray[np.float32], NDArray[np.float64], Acquisition]:
    """Voxels, affine and acquisition of an image with the fields of its sidecar."""
    values, affine = canonical(image)
    return np.ascontiguousarray(values, dtype=np.float32), affine, acquisition_headers.from_sidecar(fields, affine, anatomy)


def read_labels(path: Path, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A label map in the orientation of its image.

    Raises:
        BadInput: another grid than the image's, or values that are no labels.
    """
    values, own = canonical(load(path))
    _check_grid("label map", path, values.shape, own, shape, affine)
    if not np.array_equal(values, np.rint(values)) or values.min() < 0 or values.max() > 255:
        raise UnsupportedInput(
            "label", "label values must be whole numbers from 0 to 255", where=path.name, remedy="mend the label map"
        )
    return np.asarray(values, dtype=np.uint8)


def _check_grid(
    what: str, path: Path, shape: tuple[int, ...], own: NDArray[np.float64], wanted: tuple[int, ...], affine: NDArray[np.float64]
) -> None:
    """Shape and place of a label map must be its image's; corners may lie half a voxel apart, which headers do."""
    remedy = "resample it to the image's grid"
    if shape != wanted:
        raise UnsupportedInput("label", f"{what} of {shape} for an image of {wanted}", where=path.name, remedy=remedy)
    corners = np.array([[d, h, w, 1] for d in (0, shape[0] - 1) for h in (0, shape[1] - 1) for w in (0, shape[2] - 1)])
    apart = float(np.linalg.norm((corners @ (own - affine).T)[:, :3], axis=1).max())
    if apart > 0.5 * float(np.linalg.norm(affine[:3, :3], axis=0).min()):
        raise UnsupportedInput("label", f"{what} that lies {apart:.1f} mm off its image", where=path.name, remedy=remedy)


def read_tissue_maps(paths: dict[int, Path], shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Labels from probability maps or binary masks: the most probable structure where its probability is at least one half.

    Raises:
        BadInput: another grid than the image's.
    """
    labels, best = np.zeros(shape, dtype=np.uint8), np.full(shape, 0.5)
    for value, path in sorted(paths.items()):
        probability, own = canonical(load(path))
        _check_grid("tissue map", path, probability.shape, own, shape, affine)
        probability = probability / max(float(probability.max()), 1e-12)
        labels = np.where(probability >= best, value, labels).astype(np.uint8)
        best = np.maximum(best, probability)
    return labels
