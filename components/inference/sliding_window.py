"""A volume at the network's pixel size, and the square tiles of its slices that the network processes.

Shape letters: K samples, D slices, C coils, H rows, W columns (of the source), P side of a resampled slice in the network's pixels,
M side of a tile (the network's matrix), V tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from components.curation.curate_volume import resample_volume
from components.curation.measure.regions import FOREGROUND
from components.curation.resampling import PlaneGrid
from components.ingestion.volume import Volume
from model_core.mri_physics.coils import compress_coils, estimate_sensitivities, measured_columns
from model_core.mri_physics.fourier import fft2c_numpy
from model_core.mri_physics.sense import KSpaceMeasurement

BATCH = 8
"""Tiles that the network processes at once: memory does not grow with the volume."""
CONTENT_SHARE = 0.1
"""A slice has content if its foreground is at least this share of the foreground of the slice with the most foreground."""


@dataclass(frozen=True)
class Tile:
    """One square of one slice: slice index, and the row and column of its first pixel in the resampled slice."""

    index: int
    row: int
    column: int


@dataclass(frozen=True)
class ResampledVolume:
    """A volume resampled to the network's pixel size.

    Attributes:
        volume: the volume on its own grid.
        grid: the map from its slices to the resampled slices, which cover the whole field of view.
        matrix: side of a tile, pixels.
        voxels: (D, P, P), 99.5th percentile = 1.
        scale: value of 1 in source units.
        corners: (row, column) of the first pixel of every tile; the tiles together cover all foreground.
        first_image, measured: magnitude (D, H, W) and undersampled k-space on the source's own grid, in units of ``scale``; None
            without undersampled k-space.
    """

    volume: Volume
    grid: PlaneGrid
    matrix: int
    voxels: NDArray[np.float32]
    scale: float
    corners: tuple[tuple[int, int], ...]
    first_image: NDArray[np.float32] | None = None
    measured: KSpaceMeasurement | None = None

    @classmethod
    def from_volume(cls, volume: Volume, matrix: int, pixel_mm: float) -> ResampledVolume:
        """Resample a volume to the network's pixel size.

        If the field of view exceeds ``matrix`` pixels, a resampled slice is larger than a tile by the same whole number of pixels
        on either side, so that its central tile is the image that training would have used.
        """
        measured, first_image = _undersampled_kspace(volume), None
        if measured is not None:
            combined = np.concatenate([batch.first_image()[:, 0].numpy() for _, batch in slice_batches(measured, BATCH)])
            first_image = np.abs(combined)
            volume = replace(volume, kspace=fft2c_numpy(combined)[:, None], voxels=first_image)
        _, rows, columns = volume.voxels.shape
        _, row_mm, column_mm = volume.spacing_mm
        extent = math.ceil(max(rows * row_mm, columns * column_mm, matrix * pixel_mm) / pixel_mm - 1e-3)
        extent += (extent - matrix) % 2
        grid = PlaneGrid.centered((rows, columns), (row_mm, column_mm), extent, pixel_mm)
        arrays, scale = resample_volume(volume, grid)
        voxels = np.asarray(arrays["voxels"], dtype=np.float32)
        if measured is not None and first_image is not None:
            first_image = first_image / np.float32(scale)
            measured = replace(measured, kspace_BCDHW=measured.kspace_BCDHW / scale)
        return cls(volume, grid, matrix, voxels, scale, _tile_corners(voxels, matrix), first_image, measured)

    @property
    def content_slices(self) -> list[int]:
        """Indices of the slices with content; all slices if none has content."""
        foreground = np.count_nonzero(self.voxels > FOREGROUND, axis=(1, 2))
        return np.flatnonzero(foreground >= CONTENT_SHARE * foreground.max()).tolist() or list(range(len(self.voxels)))

    def tiles(self, slices: Sequence[int]) -> list[Tile]:
        """Return every tile of the given slices."""
        return [Tile(index, row, column) for index in slices for row, column in self.corners]

    def tiles_with_tissue(self, slices: Sequence[int]) -> list[Tile]:
        """Return the tiles of the given slices that show foreground; all of them if none does."""
        tiles = self.tiles(slices)
        return [tile for tile in tiles if (self.crop(tile) > FOREGROUND).any()] or tiles

    def richest_tile(self, index: int) -> Tile:
        """Return the tile of a slice with the most foreground."""
        return max(self.tiles([index]), key=lambda tile: np.count_nonzero(self.crop(tile) > FOREGROUND))

    def crop(self, tile: Tile) -> NDArray[np.float32]:
        """Return the (M, M) pixels of a tile."""
        return self.voxels[tile.index, tile.row : tile.row + self.matrix, tile.column : tile.column + self.matrix]

    def frame(self, tile: Tile) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return scale and offset of rows and columns: pixel p of a tile is row or column ``scale * p + offset`` of the source."""
        (row, column), scale = self.grid.offset, self.grid.scale
        return scale, (row + scale[0] * tile.row, column + scale[1] * tile.column)

    def measurement_of(self, tiles: Sequence[Tile]) -> KSpaceMeasurement | None:
        """Return the measurement of the tiles' slices if a tile is the source's grid: every sampler step then agrees with it.

        Return None on any other grid; :meth:`to_source_grid` images are then made consistent after the last step.
        """
        size = (self.grid.size, self.grid.size)
        if self.measured is None or self.grid.interpolates or self.volume.voxels.shape[1:] != size or self.grid.size != self.matrix:
            return None
        return _select_slices(self.measured, [tile.index for tile in tiles])

    def blend(self, tiles: Sequence[Tile], values_VKMM: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blend tiles into slices (K, D, P, P): Gaussian weights where tiles overlap, zero outside of all tiles."""
        weight = gaussian_weights(self.matrix)
        total = np.zeros((values_VKMM.shape[1], *self.voxels.shape), np.float32)
        weights = np.zeros(self.voxels.shape[1:], np.float32)
        for row, column in self.corners:
            weights[row : row + self.matrix, column : column + self.matrix] += weight
        for tile, values in zip(tiles, values_VKMM, strict=True):
            total[:, tile.index, tile.row : tile.row + self.matrix, tile.column : tile.column + self.matrix] += weight * values
        return np.asarray(total / np.where(weights > 0, weights, 1), dtype=np.float32)

    def to_source_grid(self, values_DPP: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample from the network's grid to the source's (D, H, W): linear, zero outside of the resampled slices.

        Slices stay as they are, so that the interpolation is a product with one matrix for rows and one for columns, both with two
        entries in each row. Dense products, slice by slice, take a hundred times as long where threads of BLAS wait for each other.
        """
        (height, width), size = self.volume.voxels.shape[1:], self.grid.size
        rows, columns = (
            _interpolation_matrix(length, self.grid.size, scale, offset)
            for length, scale, offset in zip((height, width), self.grid.scale, self.grid.offset, strict=True)
        )
        values_P_DP = values_DPP.astype(np.float32, copy=False).transpose(1, 0, 2).reshape(size, -1)
        values_P_DH = (rows @ values_P_DP).reshape(height, -1, size).transpose(2, 1, 0).reshape(size, -1)
        return np.ascontiguousarray((columns @ values_P_DH).reshape(width, -1, height).transpose(1, 2, 0))


def _interpolation_matrix(length: int, size: int, scale: float, offset: float) -> csr_array:
    """Return the weights (length, size) of linear interpolation from a resampled axis to the source's axis, zero outside of it.

    Args:
        scale, offset: of :class:`PlaneGrid`: ``source = scale * resampled + offset``.
    """
    position = np.arange(length) * (1 / scale) - offset / scale
    first = np.clip(np.floor(position), 0, max(size - 2, 0)).astype(np.intp)
    share, inside = position - first, (position >= 0) & (position <= size - 1)
    weights = np.zeros((length, size), np.float32)
    index = np.arange(length)
    weights[index, first] = np.where(inside, 1 - share, 0)
    if size > 1:
        weights[index, first + 1] = np.where(inside, share, 0)
    return csr_array(weights)


def gaussian_weights(side: int) -> NDArray[np.float32]:
    """Return the weights (M, M) of a tile's pixels where tiles overlap: those of MONAI's ``compute_importance_map``.

    The standard deviation is an eighth of the side (nnU-Net), the smallest weight 0.001. MONAI itself takes seconds to import.
    """
    profile = np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * (side / 8) ** 2))
    return np.maximum(np.outer(profile, profile), 1e-3).astype(np.float32)


def slice_batches(measured: KSpaceMeasurement, size: int) -> Iterator[tuple[slice, KSpaceMeasurement]]:
    """Yield a measurement in batches of at most ``size`` slices, each with its range of slices."""
    for first in range(0, len(measured.sampling_BDHW), size):
        batch = slice(first, first + size)
        yield batch, _select_slices(measured, list(range(*batch.indices(len(measured.sampling_BDHW)))))


def _select_slices(measured: KSpaceMeasurement, slices: Sequence[int]) -> KSpaceMeasurement:
    return measured.rows(torch.tensor(list(slices)))


def _undersampled_kspace(volume: Volume) -> KSpaceMeasurement | None:
    """Return the volume's k-space, zero where it was not measured, its slices as samples of depth 1.

    Several coils are compressed to virtual coils, as in training, and have sensitivities. Return None if the volume has no k-space,
    or if all of it was measured.
    """
    if volume.kspace is None:
        return None
    columns = measured_columns(volume.kspace)
    if columns.all():
        return None
    kspace = compress_coils(np.asarray(volume.kspace * columns, dtype=np.complex64))
    depth, coils, rows, _ = kspace.shape
    sampling = torch.from_numpy(columns).expand(depth, 1, rows, -1)
    maps = torch.from_numpy(estimate_sensitivities(kspace))[:, :, None] if coils > 1 else None
    return KSpaceMeasurement(torch.from_numpy(kspace)[:, :, None], sampling, maps)


def _tile_corners(voxels_DPP: NDArray[np.float32], matrix: int) -> tuple[tuple[int, int], ...]:
    """Return the corners of tiles that cover all foreground.

    One central tile if it suffices, else one shifted tile if that suffices, else tiles that overlap.
    """
    foreground = np.asarray((voxels_DPP > FOREGROUND).any(axis=0))
    extent = len(foreground)
    rows, columns = (
        _interval_starts(np.flatnonzero(profile), extent, matrix) for profile in (foreground.any(axis=1), foreground.any(axis=0))
    )
    return tuple((row, column) for row in rows for column in columns)


def _interval_starts(indices: NDArray[np.intp], extent: int, matrix: int) -> list[int]:
    """Return the starts of intervals of ``matrix`` pixels that cover the indices; neighbors overlap by at least half."""
    middle = (extent - matrix) // 2
    low, high = (int(indices[0]), int(indices[-1]) + 1) if indices.size else (middle, middle + 1)
    if high - low <= matrix:
        return [min(max(middle, high - matrix), low)]
    count = math.ceil((high - low - matrix) / (matrix / 2)) + 1
    return [round(float(start)) for start in np.linspace(low, high - matrix, count)]
