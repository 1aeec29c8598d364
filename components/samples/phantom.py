"""Shared parts of the generated anatomies: voxel grids, smooth random fields, soft shapes, painting of tissues, noise.

All arithmetic is float64 in numpy and scipy and ends in integers, far from rounding boundaries, so that the bytes are the same on
every machine: CPUs differ in the last bits of sums, products and transforms, by 1e-13 of a signal that is stored in steps of 1e-3.

Shapes: D slices, H rows, W columns, in the canonical orientation of the plane (as ingestion turns every image).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Array = NDArray[np.float64]
Window = tuple[slice, slice, slice]
WHOLE: Window = (slice(None), slice(None), slice(None))
MAXIMUM = 1000.0
"""Stored integer for a signal of 1.0."""
BIAS = 0.12
"""Standard deviation of the coil's sensitivity at its knots."""
_DIRECTIONS = {
    "axial": ((0, 0, 1), (0, -1, 0), (-1, 0, 0)),
    "sagittal": ((-1, 0, 0), (0, 0, -1), (0, -1, 0)),
    "coronal": ((0, -1, 0), (0, 0, -1), (-1, 0, 0)),
}
"""Plane -> direction (RAS+) of slices, rows and columns."""


@dataclass(frozen=True)
class Grid:
    """A voxel grid.

    Attributes:
        slices: number of slices.
        pixels: rows and columns of a slice.
        slice_mm, pixel_mm: spacing in mm.
        plane: ``axial``, ``sagittal`` or ``coronal``.
        center_mm: RAS+ position of the center.
    """

    slices: int
    pixels: int
    slice_mm: float
    pixel_mm: float
    plane: str = "axial"
    center_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (D, H, W)."""
        return self.slices, self.pixels, self.pixels

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the spacing of slices, rows and columns in mm."""
        return self.slice_mm, self.pixel_mm, self.pixel_mm

    def resized(self, pixels: int | None) -> Grid:
        """Return the grid with other rows and columns over the same field of view; None = its own."""
        return self if pixels is None else replace(self, pixels=pixels, pixel_mm=self.pixel_mm * self.pixels / pixels)

    @property
    def affine(self) -> Array:
        """Return the (4, 4) matrix that maps index (d, h, w, 1) to RAS+ mm."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(_DIRECTIONS[self.plane], dtype=np.float64).T * self.spacing_mm
        affine[:3, 3] = np.array(self.center_mm) - affine[:3, :3] @ ((np.array(self.shape) - 1) / 2)
        return affine

    def coordinates(self) -> tuple[Array, Array, Array]:
        """Return the positions along slices (D, 1, 1), rows (1, H, 1) and columns (1, 1, W) in mm from the center."""
        along = [
            np.asarray((np.arange(size) - (size - 1) / 2) * step, dtype=np.float64)
            for size, step in zip(self.shape, self.spacing_mm, strict=True)
        ]
        return along[0][:, None, None], along[1][None, :, None], along[2][None, None, :]

    def window(self, center: Array, reach_mm: float) -> Window:
        """Return the voxels within a distance of a position (mm from the center of the grid) along each axis."""
        edges = []
        for position, size, step in zip(center, self.shape, self.spacing_mm, strict=True):
            middle = position / step + (size - 1) / 2
            low, high = np.floor(middle - reach_mm / step), np.ceil(middle + reach_mm / step)
            edges.append(slice(int(np.clip(low, 0, size)), int(np.clip(high + 1, 0, size))))
        return edges[0], edges[1], edges[2]


@cache
def _upsampling(knots: int, size: int) -> Array:
    """Return the (size, knots) matrix of cubic spline interpolation from knots to ``size`` evenly spaced positions."""
    return np.asarray(CubicSpline(np.arange(knots), np.eye(knots))(np.linspace(0, knots - 1, size)))


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Array:
    """Return a smooth random field: cubic splines, axis by axis, through standard normal values at ``knots`` positions per axis."""
    values: Array = rng.standard_normal((knots,) * len(shape))
    for axis, size in enumerate(shape):
        values = np.moveaxis(np.tensordot(_upsampling(knots, size), values, (1, axis)), 0, axis)
    return np.ascontiguousarray(values)


def soft(signed_mm: Array, edge_mm: float) -> Array:
    """Return the coverage (0 to 1) of a shape from the signed distance to its surface (positive inside), linear over the edge."""
    return np.clip(0.5 + signed_mm / edge_mm, 0, 1)


def ellipsoid(at: tuple[Array, Array, Array], center: Array, radii: Array, turn: Array | None = None) -> Array:
    """Return the approximate signed distance (mm, positive inside) to an ellipsoid.

    Args:
        at: positions along slices, rows and columns, mm.
        center, radii: in the same order, mm.
        turn: (3, 3) rotation of its axes; None = those of the grid.
    """
    offsets = [position - middle for position, middle in zip(at, center, strict=True)]
    if turn is not None:
        offsets = [sum(turn[row, axis] * offsets[axis] for axis in range(3)) for row in range(3)]
    distance = np.sqrt(sum((offset / radius) ** 2 for offset, radius in zip(offsets, radii, strict=True)))
    return np.asarray((1 - distance) * np.min(radii))


def random_rotation(rng: np.random.Generator) -> Array:
    """Return a (3, 3) rotation, uniformly distributed (QR decomposition of a normal matrix)."""
    orthogonal, triangular = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(orthogonal * np.sign(np.diag(triangular)))


@dataclass(frozen=True)
class Protocol:
    """One sequence of an examination.

    Attributes:
        sequence: name in the controlled vocabulary.
        suffix: ending of the file name, as in BIDS.
        repetition_ms, echo_ms, flip_deg: of the header.
        signals: tissue -> mean signal; those of a patient deviate by up to 8 percent.
        technique: DICOM Scanning Sequence.
        inversion_ms: inversion time; None = no inversion.
    """

    sequence: str
    suffix: str
    repetition_ms: float
    echo_ms: float
    signals: Mapping[str, float]
    flip_deg: float = 90.0
    technique: str = "SE"
    inversion_ms: float | None = None


@dataclass
class Canvas:
    """Images and labels of one patient while tissues are painted over each other.

    A voxel has the label of the tissue that was painted last over more than half of it, so that labels and images agree.

    Attributes:
        grid: voxel grid.
        rng: random numbers of the patient.
        contrast: factor of the contrast of findings.
        structures: tissue -> label value; a tissue that is not in it has the label 0.
        signals: sequence -> tissue -> signal of this patient.
        images: sequence -> (D, H, W) noise-free signal.
        labels: (D, H, W) uint8.
        findings: finding of the whole examination -> present.
    """

    grid: Grid
    rng: np.random.Generator
    contrast: float
    structures: Mapping[str, int]
    signals: dict[str, dict[str, float]]
    images: dict[str, Array] = field(init=False)
    labels: NDArray[np.uint8] = field(init=False)
    findings: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.images = {sequence: np.zeros(self.grid.shape) for sequence in self.signals}
        self.labels = np.zeros(self.grid.shape, dtype=np.uint8)

    def mix(self, fractions: Mapping[str, Array]) -> None:
        """Fill the whole grid with a mixture: tissue -> fraction (D, H, W)."""
        for sequence, signals in self.signals.items():
            self.images[sequence][:] = sum(fraction * signals[tissue] for tissue, fraction in fractions.items())
        for tissue, fraction in fractions.items():
            if tissue in self.structures:
                self.labels[fraction > 0.5] = self.structures[tissue]

    def paint(self, tissue: str, coverage: Array, window: Window = WHOLE, contrast: float = 1.0) -> None:
        """Paint a tissue over what is there.

        Args:
            tissue: name.
            coverage: share of each voxel of the window, 0 to 1.
            window: voxels of the grid.
            contrast: factor of the difference to what is there.
        """
        for sequence, signals in self.signals.items():
            image = self.images[sequence][window]
            image += (signals[tissue] - image) * (coverage * contrast)
            np.maximum(image, 0, out=image)
        self.labels[window][coverage > 0.5] = self.structures.get(tissue, 0)

    def paint_finding(self, tissue: str, coverage: Array, window: Window = WHOLE, strength: float = 1.0) -> None:
        """Paint an abnormal tissue; the difficulty of the cohort decides its contrast."""
        self.paint(tissue, coverage, window, self.contrast * strength)

    def around(self, center: Array, reach_mm: float) -> tuple[Window, tuple[Array, Array, Array]]:
        """Return the voxels around a position and their positions in mm from the center of the grid."""
        window = self.grid.window(center, reach_mm)
        z, y, x = self.grid.coordinates()
        return window, (z[window[0]], y[:, window[1]], x[:, :, window[2]])

    def warped(self, amplitude_mm: float, knots: int = 5) -> tuple[Array, Array, Array]:
        """Return the positions of all voxels under a smooth random deformation, (D, H, W) each."""
        z, y, x = (along + amplitude_mm * smooth_field(self.rng, self.grid.shape, knots) for along in self.grid.coordinates())
        return z, y, x

    def blob(self, center: Array, radii: Array, roughness: float = 0.15) -> tuple[Window, Array]:
        """Return window and signed distance (mm) of a rotated ellipsoid with an irregular surface."""
        window, at = self.around(center, 1.5 * float(np.max(radii)))
        signed = ellipsoid(at, center, radii, random_rotation(self.rng))
        bumps = smooth_field(self.rng, signed.shape, 4) if min(signed.shape) else 0.0
        return window, np.asarray(signed + roughness * float(np.min(radii)) * bumps)

    def apply_bias(self) -> None:
        """Multiply every image by the smooth sensitivity of a coil."""
        for image in self.images.values():
            image *= np.maximum(1 + BIAS * smooth_field(self.rng, image.shape, 4), 0.3)


@dataclass(frozen=True)
class Anatomy:
    """A body part that can be generated.

    Attributes:
        name: as in cards and headers.
        grid: of images with label maps.
        kspace_grid: of k-space, with isotropic pixels of the default corpus grid.
        protocols: sequences of images.
        structures: tissue -> label value.
        kspace: the sequence of k-space.
        acquisition: fastMRI's name of that sequence.
        paint: paints patient ``number`` on a canvas.
    """

    name: str
    grid: Grid
    kspace_grid: Grid
    protocols: tuple[Protocol, ...]
    structures: Mapping[str, int]
    kspace: str
    acquisition: str
    paint: Callable[[Canvas, int], None]

    @property
    def label_map(self) -> dict[int, str]:
        """Return label value -> structure: the first tissue with this value."""
        return {value: tissue for tissue, value in reversed(list(self.structures.items()))}

    def protocol(self, sequence: str) -> Protocol:
        """Return the protocol of a sequence."""
        return next(protocol for protocol in self.protocols if protocol.sequence == sequence)


@dataclass(frozen=True)
class Patient:
    """One generated patient.

    Attributes:
        number: 0, 1, ...
        seed: of all random numbers: cohort seed, form and number.
        grid: voxel grid.
        images: sequence -> (D, H, W) noise-free magnitude with bias field.
        labels: (D, H, W) uint8.
        findings: finding of the whole examination -> present.
        noise: standard deviation of the noise in each of the real and the imaginary channel.
    """

    number: int
    seed: tuple[int, ...]
    grid: Grid
    images: dict[str, Array]
    labels: NDArray[np.uint8]
    findings: dict[str, bool]
    noise: float

    @property
    def sex(self) -> str:
        """Return ``"F"`` or ``"M"``, two patients of each in turn."""
        return "FFMM"[self.number % 4]

    @property
    def age_years(self) -> int:
        """Return a synthetic age, 21 to 79."""
        return 21 + (self.number * 17) % 59

    def simulate_magnitude(self, sequence: str) -> NDArray[np.uint16]:
        """Return the Rician magnitude of a sequence as integers, scaled by :data:`MAXIMUM`."""
        image = self.images[sequence]
        rng = np.random.default_rng([*self.seed, 1, sorted(self.images).index(sequence)])
        real, imaginary = image + self.noise * rng.standard_normal(image.shape), self.noise * rng.standard_normal(image.shape)
        return np.asarray(np.rint(np.sqrt(real**2 + imaginary**2) * MAXIMUM), dtype=np.uint16)


def generate_patient(
    anatomy: Anatomy, number: int, grid: Grid, seed: tuple[int, ...], difficulty: float, sequences: tuple[str, ...] = ()
) -> Patient:
    """Generate patient ``number`` of a cohort.

    Args:
        anatomy: body part.
        number: 0, 1, ...; a patient does not depend on the size of the cohort.
        grid: voxel grid.
        seed: of the cohort.
        difficulty: 0 (easy) to 1: contrast of findings from 1.5 to 0.5, noise from 0.01 to 0.04.
        sequences: to generate; empty = all protocols of the anatomy.
    """
    rng = np.random.default_rng([*seed, number])
    signals = {
        protocol.sequence: {tissue: value * rng.uniform(0.92, 1.08) for tissue, value in protocol.signals.items()}
        for protocol in anatomy.protocols
    }
    chosen = {sequence: signals[sequence] for sequence in (sequences or tuple(signals))}
    canvas = Canvas(grid, rng, 1.5 - difficulty, anatomy.structures, chosen)
    anatomy.paint(canvas, number)
    canvas.apply_bias()
    return Patient(number, (*seed, number), grid, canvas.images, canvas.labels, canvas.findings, 0.01 + 0.03 * difficulty)
