"""Synthetic brains: the ICBM 152 tissue maps, deformed, with random contrast, bias field and noise, and in some a lesion.

The SynthSeg way (Billot et al., arXiv:2107.09559): a generative model over real tissue maps. All arithmetic is float64 in numpy
and scipy and ends in integers, far from rounding edges, so that the bytes are the same on every machine; float32 resampling (as
in torchio or SimpleITK) would not be.

Shape letters: D slices (inferior to superior), H rows (anterior to posterior), W columns (right to left of the patient).
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
GREY, WHITE, LESION = 1, 2, 3
SEED = 152
CONTRASTS = {
    "T1-weighted": {"grey": 0.62, "white": 1.0, "fluid": 0.22, "other": 0.8, "lesion": 0.42},
    "T2-weighted": {"grey": 0.68, "white": 0.45, "fluid": 1.25, "other": 0.5, "lesion": 1.05},
}
"""Mean signal of each tissue; every patient's differs by some per cent."""
MAXIMUM = 1000.0
"""Signal 1.0 in stored integers."""


@dataclass(frozen=True)
class Grid:
    """An axial grid. Spacings in mm; centred on the head."""

    slices: int
    pixels: int
    slice_mm: float
    pixel_mm: float

    @property
    def affine(self) -> Array:
        """(4, 4): index (d, h, w, 1) -> RAS+ mm."""
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
        number: 0, 1, ...: decides everything random about the patient.
        images: sequence -> (D, H, W) float64 noise-free magnitude, bias field included, white matter around 1.
        labels: (D, H, W) uint8.
    """

    number: int
    images: dict[str, Array]
    labels: NDArray[np.uint8]

    @property
    def sex(self) -> str:
        """``"F"`` or ``"M"``, in turn."""
        return "FM"[self.number % 2]

    @property
    def age_years(self) -> int:
        """Made up, 21 to 79."""
        return 21 + (self.number * 17) % 59

    @property
    def has_lesion(self) -> bool:
        """True where label 3 occurs."""
        return bool((self.labels == LESION).any())


@cache
def _template() -> tuple[Array, Array, Array, Array]:
    """Grey, white, fluid and other signal (0 to 1) on the 1 mm ICBM grid (x, y, z), and its affine."""
    folder = package_folder("nilearn") / "datasets" / "data"
    grey, white, t1 = (
        np.asarray(nib.load(next(folder.glob(f"mni_icbm152_{name}_*.nii.gz"))).get_fdata(), dtype=np.float64)  # type: ignore[attr-defined]
        for name in ("gm", "wm", "t1")
    )
    grey, white, t1 = grey / grey.max(), white / white.max(), t1 / t1.max()
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(grey + white > 0.3, iterations=4))
    fluid = np.where(brain, np.clip(1 - grey - white, 0, 1), 0)
    other = np.where(brain, 0, t1)
    return grey, white, fluid, other


def _template_affine() -> Array:
    folder = package_folder("nilearn") / "datasets" / "data"
    return np.asarray(nib.load(next(folder.glob("mni_icbm152_t1_*.nii.gz"))).affine, dtype=np.float64)  # type: ignore[attr-defined]


def _smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Array:
    """Cubic interpolation of normal numbers on a coarse grid."""
    coarse = rng.standard_normal((knots, knots, knots))
    axes = [np.linspace(0, knots - 1, size) for size in shape]
    return np.asarray(ndimage.map_coordinates(coarse, np.meshgrid(*axes, indexing="ij"), order=3, mode="nearest"))


def _template_coordinates(rng: np.random.Generator, grid: Grid) -> Array:
    """Where each voxel of the grid lies in the template, (3, D, H, W): scaled, turned, smoothly deformed."""
    shape = (grid.slices, grid.pixels, grid.pixels)
    index = np.stack(np.meshgrid(*[np.arange(size, dtype=np.float64) for size in shape], indexing="ij"))
    millimetres = np.einsum("ij,jdhw->idhw", grid.affine[:3, :3], index) + grid.affine[:3, 3, None, None, None]
    angle = np.deg2rad(rng.uniform(-5, 5))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    scale = np.diag(rng.uniform(0.94, 1.08, size=3))
    warped = np.einsum("ij,jdhw->idhw", turn @ scale, millimetres)
    warped += 3.0 * np.stack([_smooth_field(rng, shape, 5) for _ in range(3)])
    inverse = np.linalg.inv(_template_affine())
    return np.asarray(np.einsum("ij,jdhw->idhw", inverse[:3, :3], warped) + inverse[:3, 3, None, None, None])


def _lesion(rng: np.random.Generator, white: Array, grid: Grid) -> Array:
    """Share of lesion (D, H, W): one or two soft-edged ellipsoids around places in white matter, 8 to 16 mm in radius."""
    share = np.zeros_like(white)
    deep = np.argwhere(ndimage.minimum_filter(white, size=(1, 5, 5)) > 0.5)
    millimetres = np.array([grid.slice_mm, grid.pixel_mm, grid.pixel_mm])
    index = np.stack(np.meshgrid(*[np.arange(size) for size in white.shape], indexing="ij"), -1)
    for _ in range(int(rng.integers(1, 3))):
        centre = deep[rng.integers(len(deep))]
        radii = rng.uniform(8, 16) * rng.uniform(0.8, 1.25, size=3)
        distance = np.sqrt((((index - centre) * millimetres / radii) ** 2).sum(-1))
        share = np.maximum(share, np.clip((1.15 - distance) / 0.3, 0, 1))
    return share


def brain(number: int, grid: Grid, cohort: int) -> Brain:
    """Patient ``number`` of a cohort on a grid; every second one has a lesion."""
    rng = np.random.default_rng([SEED, cohort, number])
    coordinates = _template_coordinates(rng, grid)
    grey, white, fluid, other = (ndimage.map_coordinates(tissue, coordinates, order=1) for tissue in _template())
    lesion = _lesion(rng, white, grid) if number % 2 else np.zeros_like(white)
    lesion = lesion * (grey + white + fluid > 0.5)
    images = {}
    for sequence, contrast in CONTRASTS.items():
        signal = {tissue: value * rng.uniform(0.92, 1.08) for tissue, value in contrast.items()}
        healthy = grey * signal["grey"] + white * signal["white"] + fluid * signal["fluid"] + other * signal["other"]
        bias = 1 + 0.12 * _smooth_field(rng, white.shape, 4)
        images[sequence] = (healthy * (1 - lesion) + lesion * signal["lesion"]) * bias
    labels = np.select([lesion > 0.5, white > 0.5, grey > 0.5], [LESION, WHITE, GREY], 0).astype(np.uint8)
    return Brain(number, images, labels)


def magnitude(image: Array, number: int, sequence: str, noise: float = 0.025) -> NDArray[np.uint16]:
    """Rician magnitude in integers, :data:`MAXIMUM` = 1."""
    rng = np.random.default_rng([SEED, number, len(sequence), ord(sequence[1])])
    real, imaginary = image + noise * rng.standard_normal(image.shape), noise * rng.standard_normal(image.shape)
    return np.asarray(np.rint(np.hypot(real, imaginary) * MAXIMUM), dtype=np.uint16)
