"""Generate synthetic brains: deformed ICBM 152 tissue maps with random contrast, bias field, noise, and in some a lesion.

The generative model over real tissue maps follows SynthSeg (Billot et al., arXiv:2107.09559). All arithmetic is float64 in numpy
and scipy and ends in integers, far from rounding boundaries, so that the bytes are the same on every machine; float32 resampling
(as in torchio or SimpleITK) would not guarantee this.

Shapes: D slices (inferior to superior), H rows (anterior to posterior), W columns (right to left of the patient).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.samples.packages import package_folder

Array = NDArray[np.float64]
GRAY_MATTER, WHITE_MATTER, LESION = 1, 2, 3
SEED = 152
CONTRASTS = {
    "T1-weighted": {"gray": 0.62, "white": 1.0, "fluid": 0.22, "other": 0.8, "lesion": 0.42},
    "T2-weighted": {"gray": 0.68, "white": 0.45, "fluid": 1.25, "other": 0.5, "lesion": 1.05},
}
"""Sequence -> mean signal of each tissue; the signals of a patient deviate by up to 8 percent."""
MAXIMUM = 1000.0
"""Stored integer for a signal of 1.0."""


@dataclass(frozen=True)
class Grid:
    """An axial voxel grid, centered on the head.

    Attributes:
        slices: number of slices.
        pixels: rows and columns of a slice.
        slice_mm, pixel_mm: spacing in mm.
    """

    slices: int
    pixels: int
    slice_mm: float
    pixel_mm: float

    @property
    def affine(self) -> Array:
        """Return the (4, 4) matrix that maps index (d, h, w, 1) to RAS+ mm."""
        half = (self.pixels - 1) / 2 * self.pixel_mm
        lowest = 10.0 - (self.slices - 1) / 2 * self.slice_mm
        affine = np.zeros((4, 4))
        affine[0, 2], affine[1, 1], affine[2, 0] = -self.pixel_mm, -self.pixel_mm, self.slice_mm
        affine[:, 3] = half, half - 18.0, lowest, 1.0
        return affine


@dataclass(frozen=True)
class Brain:
    """One synthetic patient.

    Attributes:
        number: 0, 1, ...: seeds all random properties of the patient.
        images: sequence -> (D, H, W) float64 noise-free magnitude with bias field, white matter around 1.
        labels: (D, H, W) uint8.
    """

    number: int
    images: dict[str, Array]
    labels: NDArray[np.uint8]

    @property
    def sex(self) -> str:
        """Return ``"F"`` for even and ``"M"`` for odd numbers."""
        return "FM"[self.number % 2]

    @property
    def age_years(self) -> int:
        """Return a synthetic age, 21 to 79."""
        return 21 + (self.number * 17) % 59

    @property
    def has_lesion(self) -> bool:
        """Return whether the label :data:`LESION` occurs."""
        return bool((self.labels == LESION).any())


@cache
def _template() -> tuple[Array, Array, Array, Array]:
    """Return gray matter, white matter, fluid and other signal (0 to 1) on the 1 mm ICBM grid (x, y, z)."""
    folder = package_folder("nilearn") / "datasets" / "data"
    gray, white, t1 = (
        np.asarray(nib.load(next(folder.glob(f"mni_icbm152_{name}_*.nii.gz"))).get_fdata(), dtype=np.float64)  # type: ignore[attr-defined]
        for name in ("gm", "wm", "t1")
    )
    gray, white, t1 = gray / gray.max(), white / white.max(), t1 / t1.max()
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(gray + white > 0.3, iterations=4))
    fluid = np.where(brain, np.clip(1 - gray - white, 0, 1), 0)
    other = np.where(brain, 0, t1)
    return gray, white, fluid, other


def _template_affine() -> Array:
    folder = package_folder("nilearn") / "datasets" / "data"
    return np.asarray(nib.load(next(folder.glob("mni_icbm152_t1_*.nii.gz"))).affine, dtype=np.float64)  # type: ignore[attr-defined]


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Array:
    """Return a random field: cubic interpolation of standard normal values on a coarse grid of ``knots`` per axis."""
    coarse = rng.standard_normal((knots, knots, knots))
    axes = [np.linspace(0, knots - 1, size) for size in shape]
    return np.asarray(ndimage.map_coordinates(coarse, np.meshgrid(*axes, indexing="ij"), order=3, mode="nearest"))


def _template_coordinates(rng: np.random.Generator, grid: Grid) -> Array:
    """Return the template coordinates (3, D, H, W) of each voxel under a random scaling, rotation and smooth deformation."""
    shape = (grid.slices, grid.pixels, grid.pixels)
    index = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float64) for size in shape], indexing="ij"))
    millimetres = np.einsum("ij,jdhw->idhw", grid.affine[:3, :3], index) + grid.affine[:3, 3, None, None, None]
    angle = np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scale = np.diag(rng.uniform(0.94, 1.08, size=3))
    warped = np.einsum("ij,jdhw->idhw", rotation @ scale, millimetres)
    warped += 3.0 * np.stack([_smooth_field(rng, shape, 5) for _ in range(3)])
    inverse = np.linalg.inv(_template_affine())
    return np.asarray(np.einsum("ij,jdhw->idhw", inverse[:3, :3], warped) + inverse[:3, 3, None, None, None])


def _lesion_fraction(rng: np.random.Generator, white: Array, grid: Grid) -> Array:
    """Return the lesion fraction (D, H, W): one or two soft-edged ellipsoids in white matter, 8 to 16 mm in radius."""
    fraction = np.zeros_like(white)
    candidates = np.argwhere(ndimage.minimum_filter(white, size=(1, 5, 5)) > 0.5)
    millimetres = np.array([grid.slice_mm, grid.pixel_mm, grid.pixel_mm])
    index = np.stack(np.meshgrid(*[np.arange(size) for size in white.shape], indexing="ij"), -1)
    for _ in range(int(rng.integers(1, 3))):
        center = candidates[rng.integers(len(candidates))]
        radii = rng.uniform(8, 16) * rng.uniform(0.8, 1.25, size=3)
        distance = np.sqrt((((index - center) * millimetres / radii) ** 2).sum(-1))
        fraction = np.maximum(fraction, np.clip((1.15 - distance) / 0.3, 0, 1))
    return fraction


def generate_brain(number: int, grid: Grid, cohort: int) -> Brain:
    """Generate patient ``number`` of a cohort on a grid; every odd number has a lesion."""
    rng = np.random.default_rng([SEED, cohort, number])
    coordinates = _template_coordinates(rng, grid)
    gray, white, fluid, other = (ndimage.map_coordinates(tissue, coordinates, order=1) for tissue in _template())
    lesion = _lesion_fraction(rng, white, grid) if number % 2 else np.zeros_like(white)
    lesion = lesion * (gray + white + fluid > 0.5)
    images = {}
    for sequence, contrast in CONTRASTS.items():
        signal = {tissue: value * rng.uniform(0.92, 1.08) for tissue, value in contrast.items()}
        healthy = gray * signal["gray"] + white * signal["white"] + fluid * signal["fluid"] + other * signal["other"]
        bias = 1 + 0.12 * _smooth_field(rng, white.shape, 4)
        images[sequence] = (healthy * (1 - lesion) + lesion * signal["lesion"]) * bias
    labels = np.select([lesion > 0.5, white > 0.5, gray > 0.5], [LESION, WHITE_MATTER, GRAY_MATTER], 0).astype(np.uint8)
    return Brain(number, images, labels)


def simulate_magnitude(image: Array, number: int, sequence: str, noise: float = 0.025) -> NDArray[np.uint16]:
    """Return the Rician magnitude as integers, scaled by :data:`MAXIMUM`.

    Args:
        image: noise-free signal (D, H, W).
        number, sequence: seed of the noise.
        noise: standard deviation in each of the real and the imaginary channel.
    """
    rng = np.random.default_rng([SEED, number, len(sequence), ord(sequence[1])])
    real, imaginary = image + noise * rng.standard_normal(image.shape), noise * rng.standard_normal(image.shape)
    return np.asarray(np.rint(np.hypot(real, imaginary) * MAXIMUM), dtype=np.uint16)
