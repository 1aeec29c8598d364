"""Tissue maps of the ICBM 152 average as nilearn has them, sampled under a random deformation: the generative model of SynthSeg
(Billot et al., arXiv:2107.09559). The average ends at the surface of the brain.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.samples.packages import package_folder
from components.samples.phantom import Array, Canvas, smooth_field

Outside = Literal["signal", "distance"]
"""Fourth map of the template: what signal of the average is left outside of the brain, or the distance to the brain."""
LONGEST_MM = 51.0
"""Distances to the brain are at most this."""
_VENTRICLES_MM = np.array([0.0, -12.0, 14.0])
_LEVELS = 255.0


@cache
def _template(outside: Outside) -> tuple[NDArray[np.uint8], Array]:
    """Return gray matter, white matter, fluid and the map of the outside (x, y, z, 4) in steps of 1/255, and the inverse affine."""
    folder = package_folder("nilearn") / "datasets" / "data"
    images = [nib.load(next(folder.glob(f"mni_icbm152_{name}_*.nii.gz"))) for name in ("gm", "wm", "t1")]
    gray, white, t1 = (np.asarray(image.get_fdata(dtype=np.float64)) for image in images)  # type: ignore[attr-defined]
    gray, white, t1 = gray / gray.max(), white / white.max(), t1 / t1.max()
    coarse = gray[::2, ::2, ::2] + white[::2, ::2, ::2] > 0.3
    coarse = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(coarse, 3), iterations=2))[3:-3, 3:-3, 3:-3]
    brain = _every_voxel(coarse, gray.shape)
    fluid = np.where(brain, np.clip(1 - gray - white, 0, 1), 0)
    around = np.where(brain, 0, t1) if outside == "signal" else _every_voxel(_distance_mm(coarse), gray.shape) / LONGEST_MM
    packed = np.stack([np.rint(share * _LEVELS).astype(np.uint8) for share in (gray, white, fluid, around)], axis=-1)
    affine: Array = images[2].affine  # type: ignore[attr-defined]
    return packed, np.asarray(np.linalg.inv(affine), dtype=np.float64)


def _distance_mm(coarse: NDArray[np.bool_]) -> Array:
    """Return the distance to a brain of 2 mm voxels, whose sulci are filled."""
    smooth = ndimage.gaussian_filter(coarse.astype(np.float64), 2.0) > 0.45
    return np.minimum(2.0 * ndimage.distance_transform_edt(~(smooth | coarse)), LONGEST_MM)


def _every_voxel(coarse: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return all voxels (x, y, z) of a map that has every second one."""
    return np.asarray(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(size) for size in shape)])


def sample_template(positions: list[Array], outside: Outside = "signal") -> list[Array]:
    """Return four maps (D, H, W) of values from 0 to 1 by trilinear interpolation, slice by slice.

    Args:
        positions: RAS+ mm, 3 x (D, H, W).
        outside: the fourth map, after gray matter, white matter and fluid.
    """
    template, inverse = _template(outside)
    limits = np.array(template.shape[:3]) - 2
    words = template.view(np.uint32).ravel()
    strides = (template.shape[1] * template.shape[2], template.shape[2], 1)
    fractions = np.empty((*positions[0].shape, 4))
    for depth, slice_positions in enumerate(zip(*positions, strict=True)):
        base, shares = np.zeros(slice_positions[0].shape, dtype=np.int64), []
        for axis in range(3):
            index = sum(inverse[axis, world] * slice_positions[world] for world in range(3)) + inverse[axis, 3]
            index = np.clip(index, 0, limits[axis] + 0.999)
            whole = index.astype(np.int64)
            base += whole * strides[axis]
            shares.append(((whole + 1 - index), (index - whole)))
        total = np.zeros((*base.shape, 4))
        for corner in np.ndindex(2, 2, 2):
            offset = sum(step * stride for step, stride in zip(corner, strides, strict=True))
            weight = shares[0][corner[0]] * shares[1][corner[1]] * shares[2][corner[2]]
            total += weight[..., None] * words[base + offset].view(np.uint8).reshape(*base.shape, 4)
        fractions[depth] = total / _LEVELS
    return [np.ascontiguousarray(fractions[..., tissue]) for tissue in range(4)]


def widened_sulci(gray: Array, fluid: Array, atrophy: float) -> tuple[Array, Array]:
    """Return gray matter and fluid when sulci are wider at the cost of gray matter; ``atrophy`` is 0 to 0.5."""
    lost = np.minimum(gray, 1.5 * atrophy * fluid)
    return gray - lost, fluid + lost


def deformed_positions(canvas: Canvas, atrophy: float, height_mm: float = 0.0) -> list[Array]:
    """Return the template position (RAS+ mm) of each voxel under a random deformation and enlarged ventricles.

    Args:
        canvas: of the patient.
        atrophy: 0 to 0.5; enlarges the ventricles.
        height_mm: moves the slices upward.
    """
    rng, affine = canvas.rng, canvas.grid.affine
    angle = np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = rotation @ np.diag(rng.uniform(0.94, 1.08, size=3))
    step, start = matrix @ affine[:3, :3], matrix @ affine[:3, 3] + [0.0, 0.0, height_mm]
    d, h, w = np.ogrid[tuple(slice(size) for size in canvas.grid.shape)]
    positions = []
    for axis in range(3):
        straight = step[axis, 0] * d + step[axis, 1] * h + step[axis, 2] * w + start[axis]
        positions.append(straight + 3.0 * smooth_field(rng, canvas.grid.shape, 5))
    if atrophy:
        offsets = [position - middle for position, middle in zip(positions, _VENTRICLES_MM, strict=True)]
        shrink = 1 - atrophy * np.exp(-sum(offset**2 for offset in offsets) / (2 * 24.0**2))
        positions = [middle + offset * shrink for offset, middle in zip(offsets, _VENTRICLES_MM, strict=True)]
    return positions
