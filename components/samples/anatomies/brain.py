"""Brain: deformed ICBM 152 tissue maps with white-matter lesions, a tumor, or atrophy.

The generative model over real tissue maps follows SynthSeg (Billot et al., arXiv:2107.09559).
"""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.samples.packages import package_folder
from components.samples.phantom import Anatomy, Array, Canvas, Grid, Protocol, smooth_field, soft

GRAY, WHITE, LESION, TUMOR, EDEMA = "grey matter", "white matter", "lesion", "tumor", "edema"
STRUCTURES = {GRAY: 1, WHITE: 2, LESION: 3, TUMOR: 4, EDEMA: 5}
KINDS = ("none", LESION, "none", TUMOR, "none", LESION)
"""Focal finding of patient ``number % 6``."""
ATROPHY = "atrophy"
CENTER_MM = (0.0, -18.0, 10.0)
GRID = Grid(slices=20, pixels=108, slice_mm=6.0, pixel_mm=2.0, center_mm=CENTER_MM)
KSPACE_GRID = Grid(slices=16, pixels=96, slice_mm=7.0, pixel_mm=2.25, center_mm=CENTER_MM)
_VENTRICLES_MM = np.array([0.0, -12.0, 14.0])
_LEVELS = 255.0
T1 = {GRAY: 0.62, WHITE: 1.0, "fluid": 0.22, "other": 0.8, LESION: 0.42, "bleeding": 1.4, TUMOR: 0.4, "rim": 0.62, EDEMA: 0.6}
T2 = {GRAY: 0.68, WHITE: 0.45, "fluid": 1.25, "other": 0.5, LESION: 1.05, "bleeding": 0.15, TUMOR: 1.15, "rim": 0.6, EDEMA: 0.92}


@cache
def _template() -> tuple[NDArray[np.uint8], Array]:
    """Return gray matter, white matter, fluid and other signal (x, y, z, 4) in steps of 1/255, and the inverse affine."""
    folder = package_folder("nilearn") / "datasets" / "data"
    images = [nib.load(next(folder.glob(f"mni_icbm152_{name}_*.nii.gz"))) for name in ("gm", "wm", "t1")]
    gray, white, t1 = (np.asarray(image.get_fdata(dtype=np.float64)) for image in images)  # type: ignore[attr-defined]
    gray, white, t1 = gray / gray.max(), white / white.max(), t1 / t1.max()
    coarse = gray[::2, ::2, ::2] + white[::2, ::2, ::2] > 0.3
    coarse = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(coarse, 3), iterations=2))[3:-3, 3:-3, 3:-3]
    brain = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)[tuple(slice(size) for size in gray.shape)]
    fluid = np.where(brain, np.clip(1 - gray - white, 0, 1), 0)
    tissues = [gray, white, fluid, np.where(brain, 0, t1)]
    packed = np.stack([np.rint(tissue * _LEVELS).astype(np.uint8) for tissue in tissues], axis=-1)
    affine: Array = images[2].affine  # type: ignore[attr-defined]
    return packed, np.asarray(np.linalg.inv(affine), dtype=np.float64)


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
    """Return the template position (RAS+ mm) of each voxel under a random deformation and enlarged ventricles."""
    rng, affine = canvas.rng, canvas.grid.affine
    angle = np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    matrix = rotation @ np.diag(rng.uniform(0.94, 1.08, size=3))
    step, start = matrix @ affine[:3, :3], matrix @ affine[:3, 3]
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


def paint_head(canvas: Canvas, atrophy: float = 0.0) -> tuple[Array, Array]:
    """Paint a head; ``atrophy`` (0 to 0.5) enlarges ventricles and sulci. Return the fractions of white matter and of brain."""
    gray, white, fluid, other = _sample_template(_positions(canvas, atrophy))
    if atrophy:
        lost = np.minimum(gray, 1.5 * atrophy * fluid)
        gray, fluid = gray - lost, fluid + lost
    canvas.mix({GRAY: gray, WHITE: white, "fluid": fluid, "other": other})
    return white, np.clip(gray + white + fluid, 0, 1)


def _site(canvas: Canvas, white: Array, margin_mm: float) -> Array:
    """Return a random position (mm from the center of the grid) inside white matter, apart from the outer slices."""
    margin = max(1, int(margin_mm / canvas.grid.slice_mm))
    inner = np.flatnonzero(white[margin:-margin] > 0.8)
    if not len(inner):
        return np.zeros(3)
    index = np.array(np.unravel_index(inner[canvas.rng.integers(len(inner))], white[margin:-margin].shape))
    index[0] += margin
    return np.asarray((index - (np.array(canvas.grid.shape) - 1) / 2) * canvas.grid.spacing_mm)


def paint_lesions(canvas: Canvas, white: Array, brain: Array) -> None:
    """Paint one to five lesions of 6 to 16 mm radius in white matter, of one kind: like fluid, or like old blood in one of four."""
    rng = canvas.rng
    tissue, strength = ("bleeding" if rng.random() < 0.25 else LESION), rng.uniform(0.7, 1.1)
    count = int(rng.choice([1, 1, 2, 3, 5]))
    for _ in range(count):
        radii = 6.5 * 2.2 ** rng.random() * rng.uniform(0.85, 1.2, size=3)
        window, signed = canvas.blob(_site(canvas, white, 12.0), radii)
        canvas.paint_finding(tissue, soft(signed, 2.5) * brain[window], window, strength)


def paint_tumor(canvas: Canvas, white: Array, brain: Array, core: str = TUMOR, rim: str = "rim") -> None:
    """Paint a tumor: edema that spreads in white matter around a rim and a core without enhancement."""
    rng = canvas.rng
    radius = rng.uniform(10, 18)
    center = _site(canvas, white, radius)
    window, signed = canvas.blob(center, radius * rng.uniform(0.85, 1.2, size=3))
    window_edema, signed_edema = canvas.blob(center, (radius + rng.uniform(6, 12)) * rng.uniform(0.9, 1.15, size=3), 0.25)
    canvas.paint_finding(EDEMA, soft(signed_edema, 4.0) * np.clip(1.6 * white[window_edema], 0, 1), window_edema)
    canvas.paint_finding(rim, soft(signed, 2.5) * brain[window], window)
    canvas.paint_finding(core, soft(signed - rng.uniform(2.5, 4.5), 2.5) * brain[window], window)


def paint(canvas: Canvas, number: int) -> None:
    """Paint patient ``number``: half have no focal finding, a third lesions, a sixth a tumor; one in five has atrophy besides."""
    kind = KINDS[number % len(KINDS)]
    canvas.findings = {ATROPHY: number % 5 == 2, LESION: kind == LESION, TUMOR: kind == TUMOR}
    white, brain = paint_head(canvas, canvas.rng.uniform(0.25, 0.45) if canvas.findings[ATROPHY] else 0.0)
    if kind == LESION:
        paint_lesions(canvas, white, brain)
    elif kind == TUMOR:
        paint_tumor(canvas, white, brain)


BRAIN = Anatomy(
    name="brain",
    grid=GRID,
    kspace_grid=KSPACE_GRID,
    protocols=(
        Protocol("T1-weighted", "T1w", 550.0, 11.0, T1),
        Protocol("T2-weighted", "T2w", 4200.0, 92.0, T2),
    ),
    structures={**STRUCTURES, "bleeding": STRUCTURES[LESION], "rim": STRUCTURES[TUMOR]},
    kspace="T2-weighted",
    acquisition="AXT2",
    paint=paint,
)
