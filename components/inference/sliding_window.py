"""A volume as the network sees it: planes of its pixel size, and the squares of them that it looks at.

Shape letters: K draws, D slices, C coils, H rows, W columns (of the source), P side of the plane in the network's pixels,
M side of a square (the network's matrix).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from components.curation.curate_volume import gridded
from components.curation.measure.regions import FOREGROUND
from components.curation.resampling import PlaneGrid
from components.inference.coils import measured_columns, sensitivities
from components.ingestion.volume import Volume
from model_core.boxes import GRID, TextBox
from model_core.mri_physics.fourier_numpy import fft2c
from model_core.mri_physics.sense import Measured

CONTENT_SHARE = 0.1
"""A slice shows something if it has at least this share of the foreground of the richest slice."""


@dataclass(frozen=True)
class View:
    """One square of one slice: slice index, and the row and column of its corner in the plane."""

    index: int
    row: int
    column: int


@dataclass(frozen=True)
class Planes:
    """A volume brought to the network's pixel size.

    Attributes:
        volume: as it was read.
        grid: the map from its planes to those of the network, which cover the whole field of view.
        matrix: side of what the network looks at, pixels.
        voxels: (D, P, P), 99.5th percentile = 1; scale: source units of 1.
        corners: (row, column) of the squares that are looked at; together they hold everything that is foreground.
        zero_filled, measured: magnitude (D, H, W) and undersampled k-space on the source's own grid, in units of ``scale``; None
            where there is no such k-space.
    """

    volume: Volume
    grid: PlaneGrid
    matrix: int
    voxels: NDArray[np.float32]
    scale: float
    corners: tuple[tuple[int, int], ...]
    zero_filled: NDArray[np.float32] | None = None
    measured: Measured | None = None

    @classmethod
    def of(cls, volume: Volume, matrix: int, pixel_mm: float) -> Planes:
        """Bring a volume to the network's pixel size.

        Where the field of view exceeds ``matrix`` pixels, the plane is larger than the network's square, by whole pixels on either
        side, so that its middle is what training would have shown.
        """
        measured, zero_filled = _undersampled(volume), None
        if measured is not None:
            combined = measured.zero_filled()[:, 0].numpy()
            zero_filled = np.abs(combined)
            volume = replace(volume, kspace=fft2c(combined)[:, None], voxels=zero_filled)
        _, rows, columns = volume.voxels.shape
        _, row_mm, column_mm = volume.spacing_mm
        extent = math.ceil(max(rows * row_mm, columns * column_mm, matrix * pixel_mm) / pixel_mm - 1e-3)
        extent += (extent - matrix) % 2
        grid = PlaneGrid.centred((rows, columns), (row_mm, column_mm), extent, pixel_mm)
        arrays, scale = gridded(volume, grid)
        voxels = np.asarray(arrays["voxels"], dtype=np.float32)
        if measured is not None and zero_filled is not None:
            zero_filled = zero_filled / np.float32(scale)
            measured = replace(measured, kspace_BCDHW=measured.kspace_BCDHW / scale)
        return cls(volume, grid, matrix, voxels, scale, _corners(voxels, matrix), zero_filled, measured)

    @property
    def content(self) -> list[int]:
        """Slices that show something; all where none does."""
        shown = np.count_nonzero(self.voxels > FOREGROUND, axis=(1, 2))
        return np.flatnonzero(shown >= CONTENT_SHARE * shown.max()).tolist() or list(range(len(self.voxels)))

    def views(self, slices: Sequence[int]) -> list[View]:
        """Every square of some slices."""
        return [View(index, row, column) for index in slices for row, column in self.corners]

    def richest(self, index: int) -> View:
        """The square that shows most of a slice."""
        return max(self.views([index]), key=lambda view: np.count_nonzero(self.seen(view) > FOREGROUND))

    def seen(self, view: View) -> NDArray[np.float32]:
        """(M, M) pixels of a square."""
        return self.voxels[view.index, view.row : view.row + self.matrix, view.column : view.column + self.matrix]

    def measured_of(self, views: Sequence[View]) -> Measured | None:
        """The measurement of some slices, where the network's square is the source's grid: then every step of its sampler agrees
        with it. None elsewhere; the source's grid is then made to agree at the end."""
        size = (self.grid.size, self.grid.size)
        if self.measured is None or self.grid.interpolates or self.volume.voxels.shape[1:] != size or self.grid.size != self.matrix:
            return None
        return _chosen(self.measured, [view.index for view in views])

    def blended(self, views: Sequence[View], made_VKMM: NDArray[np.float32]) -> NDArray[np.float32]:
        """What was made of squares, on the planes (K, D, P, P): weighted by a Gaussian where they overlap, zero where none is."""
        from monai.data.utils import compute_importance_map

        weight = compute_importance_map((self.matrix, self.matrix), mode="gaussian").numpy()
        total = np.zeros((made_VKMM.shape[1], *self.voxels.shape), np.float32)
        weights = np.zeros(self.voxels.shape[1:], np.float32)
        for row, column in self.corners:
            weights[row : row + self.matrix, column : column + self.matrix] += weight
        for view, made in zip(views, made_VKMM, strict=True):
            total[:, view.index, view.row : view.row + self.matrix, view.column : view.column + self.matrix] += weight * made
        return np.asarray(total / np.where(weights > 0, weights, 1), dtype=np.float32)

    def on_source(self, made_DPP: NDArray[np.float32]) -> NDArray[np.float32]:
        """From the planes to the source's own (D, H, W), linear, zero outside of the planes."""
        scale = np.array([1.0, *(1 / s for s in self.grid.scale)])
        offset = np.array([0.0, *(-o / s for o, s in zip(self.grid.offset, self.grid.scale, strict=True))])
        shape = self.volume.voxels.shape
        return np.asarray(ndimage.affine_transform(made_DPP, scale, offset, shape, order=1, mode="constant"), dtype=np.float32)

    def box_on_source(self, view: View, box: TextBox) -> tuple[int, int, int, int]:
        """Edges of a box in a square's text as (row, column, row, column) edges on the source's grid."""
        corner, edges = (view.row, view.column), []
        for axis, value in ((0, box.row0), (1, box.col0), (0, box.row1), (1, box.col1)):
            pixel = corner[axis] + value * self.matrix / GRID
            place = (pixel - 0.5) * self.grid.scale[axis] + self.grid.offset[axis] + 0.5
            edges.append(int(np.clip(round(place), 0, self.volume.voxels.shape[axis + 1])))
        return edges[0], edges[1], edges[2], edges[3]


def batches_of_slices(measured: Measured, size: int) -> Iterator[tuple[slice, Measured]]:
    """A measurement, some slices at a time."""
    for first in range(0, len(measured.sampling_BDHW), size):
        part = slice(first, first + size)
        yield part, _chosen(measured, list(range(*part.indices(len(measured.sampling_BDHW)))))


def _chosen(measured: Measured, slices: Sequence[int]) -> Measured:
    maps = measured.coil_maps_BCDHW
    rows = list(slices)
    return Measured(measured.kspace_BCDHW[rows], measured.sampling_BDHW[rows], None if maps is None else maps[rows])


def _undersampled(volume: Volume) -> Measured | None:
    """The volume's k-space with nothing but zeros where it was not measured, its slices as samples of depth 1, with coil maps where
    there are several coils. None where all of it was measured, or there is none."""
    if volume.kspace is None:
        return None
    columns = measured_columns(volume.kspace)
    if columns.all():
        return None
    kspace = np.asarray(volume.kspace * columns, dtype=np.complex64)
    depth, coils, rows, _ = kspace.shape
    sampling = torch.from_numpy(columns).expand(depth, 1, rows, -1)
    maps = torch.from_numpy(sensitivities(kspace))[:, :, None] if coils > 1 else None
    return Measured(torch.from_numpy(kspace)[:, :, None], sampling, maps)


def _corners(voxels_DPP: NDArray[np.float32], matrix: int) -> tuple[tuple[int, int], ...]:
    """Squares that hold all of the foreground: one in the middle if that is enough, one moved if that is, else overlapping ones."""
    shown = np.asarray((voxels_DPP > FOREGROUND).any(axis=0))
    extent = len(shown)
    rows, columns = (_starts(np.flatnonzero(along), extent, matrix) for along in (shown.any(axis=1), shown.any(axis=0)))
    return tuple((row, column) for row in rows for column in columns)


def _starts(places: NDArray[np.intp], extent: int, matrix: int) -> list[int]:
    """Starts of the intervals of ``matrix`` pixels that cover the places; neighbours overlap by half at least."""
    middle = (extent - matrix) // 2
    low, high = (int(places[0]), int(places[-1]) + 1) if places.size else (middle, middle + 1)
    if high - low <= matrix:
        return [min(max(middle, high - matrix), low)]
    count = math.ceil((high - low - matrix) / (matrix / 2)) + 1
    return [round(float(start)) for start in np.linspace(low, high - matrix, count)]
