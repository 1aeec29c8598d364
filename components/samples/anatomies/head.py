"""Head: deformed ICBM 152 tissue maps inside of a skull and a scalp.

The generative model over real tissue maps follows SynthSeg (Billot et al., arXiv:2107.09559). The average ends at the surface of
the brain; around it are layers of a given thickness.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.samples.packages import package_folder
from components.samples.phantom import Array, Canvas, smooth_field, soft

GRAY, WHITE = "gray matter", "white matter"
TISSUES = (GRAY, WHITE, "fluid", "bone", "marrow", "fat", "muscle")
"""All tissues of a head, of which each protocol states the signal."""
EXTRACTED = 0.5
"""Share of images whose brain was extracted, as many public datasets are published; k-space has whole heads alone."""
_VENTRICLES_MM = np.array([0.0, -12.0, 14.0])
_LEVELS = 255.0
_DISTANCE_STEP_MM = 0.2
_NECK_MM = -15.0
"""Height (RAS+) below which muscles thicken the scalp."""


@cache
def _template() -> tuple[NDArray[np.uint8], Array]:
    """Return gray matter, white matter, fluid (1/255) and distance to the brain (0.2 mm), (x, y, z, 4), and the inverse affine."""
    folder = package_folder("nilearn") / "datasets" / "data"
    images = [nib.load(next(folder.glob(f"mni_icbm152_{name}_*.nii.gz"))) for name in ("gm", "wm")]
    gray, white = (np.asarray(image.get_fdata(dtype=np.float64)) for image in images)  # type: ignore[attr-defined]
    gray, white = gray / gray.max(), white / white.max()
    coarse = gray[::2, ::2, ::2] + white[::2, ::2, ::2] > 0.3
    coarse = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(coarse, 3), iterations=2))[3:-3, 3:-3, 3:-3]
    fluid = np.where(_refined(coarse, gray.shape), np.clip(1 - gray - white, 0, 1), 0)
    smooth = ndimage.gaussian_filter(coarse.astype(np.float64), 2.0) > 0.45  # a skull has no sulci
    distance_mm = 2.0 * ndimage.distance_transform_edt(~(smooth | coarse))
    steps = np.minimum(_refined(distance_mm, gray.shape) / _DISTANCE_STEP_MM, _LEVELS)
    packed = np.stack([*(np.rint(_LEVELS * tissue) for tissue in (gray, white, fluid)), np.rint(steps)], axis=-1)
    affine: Array = images[0].affine  # type: ignore[attr-defined]
    return packed.astype(np.uint8), np.asarray(np.linalg.inv(affine), dtype=np.float64)


def _refined(coarse: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a map of every second voxel with all voxels, (x, y, z)."""
    return np.asarray(coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(size) for size in shape)])


def _sample_template(positions: list[Array]) -> list[Array]:
    """Return the four tissue fractions (D, H, W) at RAS+ positions (3 x (D, H, W)) by trilinear interpolation, slice by slice."""
    template, inverse = _template()
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


def _positions(canvas: Canvas, atrophy: float) -> list[Array]:
    """Return the template position (RAS+ mm) of each voxel: random height of the slices and deformation, enlarged ventricles."""
    rng, affine = canvas.rng, canvas.grid.affine
    angle = np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = rotation @ np.diag(rng.uniform(0.94, 1.08, size=3))
    step, start = matrix @ affine[:3, :3], matrix @ affine[:3, 3] + [0.0, 0.0, rng.uniform(-10, 10)]
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


def _around_brain(canvas: Canvas, distance_mm: Array, height_mm: Array) -> dict[str, Array]:
    """Return the shares of the tissues around the brain: fluid, a skull with marrow, a scalp of fat with muscles below.

    Args:
        canvas: of the patient.
        distance_mm: to the surface of the brain (D, H, W).
        height_mm: RAS+ height in the template (D, H, W).
    """
    rng, shape = canvas.rng, canvas.grid.shape
    gap, bone, scalp = rng.uniform(1.0, 3.0), rng.uniform(4.0, 7.0), rng.uniform(3.0, 6.5)
    uneven = np.exp(0.15 * smooth_field(rng, shape, 6))
    skull, skin = gap + bone * uneven, gap + bone * uneven + scalp * uneven + np.clip(0.5 * (_NECK_MM - height_mm), 0, 20)
    within = [soft(limit - distance_mm, canvas.grid.pixel_mm) for limit in (gap, skull, skin)]
    marrow = (within[1] - within[0]) * soft(bone * uneven / 6 - np.abs(distance_mm - (gap + skull) / 2), canvas.grid.pixel_mm)
    below = np.clip((_NECK_MM + 10 - height_mm) / 20, 0, 1)
    muscle = (within[2] - within[1]) * soft(2 * below - 1 + 0.5 * smooth_field(rng, shape, 12), 1.0)
    return {
        "fluid": within[0],
        "bone": within[1] - within[0] - marrow,
        "marrow": marrow,
        "fat": within[2] - within[1] - muscle,
        "muscle": muscle,
    }


def paint_head(canvas: Canvas, atrophy: float = 0.0) -> tuple[Array, Array]:
    """Paint a head or a brain alone and return the shares of white matter and brain; ``atrophy``, 0 to 0.5, enlarges the fluid."""
    positions = _positions(canvas, atrophy)
    gray, white, fluid, distance = _sample_template(positions)
    if atrophy:
        lost = np.minimum(gray, 1.5 * atrophy * fluid)
        gray, fluid = gray - lost, fluid + lost
    brain = np.clip(gray + white + fluid, 0, 1)
    around = _around_brain(canvas, distance * _LEVELS * _DISTANCE_STEP_MM, positions[2])
    shares = {GRAY: gray, WHITE: white, "fluid": fluid}
    if canvas.raw or canvas.rng.random() >= EXTRACTED:
        shares |= {tissue: shares.get(tissue, 0.0) + (1 - brain) * share for tissue, share in around.items()}
    canvas.mix(shares)
    return white, brain
