"""Canonical orientation: slices first, rows to posterior or inferior, columns to left or posterior."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
MIN_ANISOTROPY = 1.5
"""The slice axis of an anisotropic image is at least this many times coarser than its finest axis; other images count as axial."""
_AXIS_CODES = {0: "LIP", 1: "PIL", 2: "SPL"}
"""Slice axis (0 x, 1 y, 2 z) -> directions of the indices d, h, w: rows to posterior or inferior, columns to left or posterior."""


PLANE_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
"""Plane -> its slice axis (0 x, 1 y, 2 z)."""


def canonical_directions(plane: str) -> NDArray[np.float64]:
    """Return the canonical directions of a plane, (3, 3): the columns are slices, rows and columns of the image, RAS+."""
    signs = {"R": (0, 1.0), "L": (0, -1.0), "A": (1, 1.0), "P": (1, -1.0), "S": (2, 1.0), "I": (2, -1.0)}
    directions = np.zeros((3, 3))
    for index, code in enumerate(_AXIS_CODES[PLANE_AXES[plane]]):
        axis, sign = signs[code]
        directions[axis, index] = sign
    return directions


def round_affine(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round an affine to 1e-9 mm, so that rounding errors of products that are zero, which differ between CPUs, reach no file."""
    return np.asarray(np.round(affine, 9) + 0.0)


def to_canonical(image: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the values (D, H, W) of a NIfTI image and the affine (d, h, w, 1) -> RAS+ mm; of a 4-D image, the first volume.

    The slice axis is that of a single slice, else the coarse one of an anisotropic image, else inferior-superior.
    """
    values = _first_volume(image)
    spacing = np.linalg.norm(image.affine[:3, :3], axis=0)
    single = [axis for axis, side in enumerate(values.shape) if side == 1]
    coarse = single[0] if len(single) == 1 else int(spacing.argmax())
    is_told = len(single) == 1 or spacing[coarse] >= MIN_ANISOTROPY * spacing.min()
    return _reorient(values, image.affine, coarse if is_told else None)


def turn_like(image: Any, affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the values and the affine of a NIfTI image with its axes permuted and reversed to those of another image.

    Its own slice axis is not asked for: a label map whose voxel size is rounded differently may have another one than its image.

    Args:
        affine: (4, 4) of the other image, index -> RAS+ mm.
    """
    from nibabel import orientations

    values = _first_volume(image)
    transform = orientations.io_orientation(np.linalg.inv(affine) @ image.affine)
    return _apply(values, image.affine, transform)


def _first_volume(image: Any) -> NDArray[Any]:
    values = np.asanyarray(image.dataobj)
    return values[..., 0] if values.ndim == 4 else values


def keep_slices_first(values: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn rows and columns of an array (slices, ., ., ...) to the canonical directions; slices stay slices."""
    return _reorient(values, affine, 0)


def _reorient(
    values: NDArray[Any], affine: NDArray[np.float64], slice_axis: int | None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Turn the first three axes to slices, rows, columns; ``slice_axis`` None = the inferior-superior axis."""
    from nibabel import orientations

    current = orientations.io_orientation(affine)
    world_axis = int(current[slice_axis, 0]) if slice_axis is not None else 2
    target = orientations.axcodes2ornt(tuple(_AXIS_CODES[world_axis]))
    return _apply(values, affine, orientations.ornt_transform(current, target))


def _apply(values: NDArray[Any], affine: NDArray[np.float64], transform: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Permute and reverse the first three axes by nibabel's transform."""
    from nibabel import orientations

    new_affine = affine @ orientations.inv_ornt_aff(transform, values.shape[:3])
    return orientations.apply_orientation(values, transform), np.asarray(new_affine, dtype=np.float64)
