"""Resample volumes to one in-plane grid: matrix x matrix pixels of pixel_mm, centered; slices stay as they were acquired.

Rows and columns are resampled, the slice axis never is: acquired slices of 2-D sequences are 3-7 mm apart, and interpolated planes
between them would teach the network interpolation. An image with the pixel size of the grid is cropped or padded by whole pixels,
without interpolation. Before downsampling, a Gaussian of sigma = (factor - 1) / 2 pixels (the rule of scikit-image) is applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SAME_SPACING = 1e-3
"""Relative difference in pixel size below which the image is not interpolated."""


@dataclass(frozen=True)
class PlaneGrid:
    """The map between a source plane and the curated plane: ``source = scale * target + offset`` per in-plane axis.

    Attributes:
        size: curated rows = columns, pixels.
        scale: source pixels per curated pixel, (rows, columns).
        offset: source index of the curated pixel 0, (rows, columns).
    """

    size: int
    scale: tuple[float, float]
    offset: tuple[float, float]

    @property
    def pixel_area(self) -> float:
        """Source pixels in the area of a curated pixel."""
        return self.scale[0] * self.scale[1]

    @classmethod
    def centered(cls, shape: tuple[int, int], spacing_mm: tuple[float, float], size: int, pixel_mm: float) -> PlaneGrid:
        """Return the grid whose center is that of a plane of ``shape`` (H, W) pixels of ``spacing_mm``."""
        scales, offsets = [], []
        for length, spacing in zip(shape, spacing_mm, strict=True):
            scale = pixel_mm / spacing
            if abs(scale - 1) < SAME_SPACING:
                scales.append(1.0)
                offsets.append(float((length - size) // 2))
            else:
                scales.append(scale)
                offsets.append((length - 1) / 2 - scale * (size - 1) / 2)
        return cls(size, (scales[0], scales[1]), (offsets[0], offsets[1]))

    @property
    def interpolates(self) -> bool:
        """True if values are interpolated, False if whole pixels are cropped or padded."""
        return self.scale != (1.0, 1.0)

    def map_affine(self, source: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert the (4, 4) affine of the source to that of the curated volume (index (d, h, w, 1) -> RAS+ mm)."""
        step = np.diag([1.0, *self.scale, 1.0])
        step[1:3, 3] = self.offset
        return np.asarray(source @ step, dtype=np.float64)

    def map_box(self, row0: int, col0: int, row1: int, col1: int) -> tuple[int, int, int, int] | None:
        """Map a half-open pixel box of the source to the curated grid; None if it is entirely outside."""
        edges = []
        for low, high, scale, offset in ((row0, row1, *self._axis(0)), (col0, col1, *self._axis(1))):
            # Pixel k covers [k - 1/2, k + 1/2): map edges as continuous coordinates, then round outward to whole pixels.
            start = int(np.floor((low - 0.5 - offset) / scale + 0.5))
            stop = int(np.ceil((high - 0.5 - offset) / scale + 0.5))
            edges.append((max(start, 0), min(stop, self.size)))
        (top, bottom), (left, right) = edges
        return (top, left, bottom, right) if top < bottom and left < right else None

    def _axis(self, axis: int) -> tuple[float, float]:
        return self.scale[axis], self.offset[axis]


def _crop_and_pad(volume: NDArray[Any], grid: PlaneGrid) -> NDArray[Any]:
    """Crop and zero-pad the last two axes of a (D, H, W) array by whole pixels."""
    for axis, offset in ((1, int(grid.offset[0])), (2, int(grid.offset[1]))):
        length = volume.shape[axis]
        start, stop = max(offset, 0), min(offset + grid.size, length)
        cropped = np.take(volume, np.arange(start, stop), axis=axis)
        padding = [(0, 0)] * 3
        padding[axis] = (start - offset, grid.size - (stop - offset))
        volume = np.pad(cropped, padding)
    return volume


def resample(array: NDArray[Any], grid: PlaneGrid, nearest: bool = False) -> NDArray[Any]:
    """Resample a (D, H, W) array to (D, size, size) on ``grid``, with zeros outside the source.

    Args:
        array: real, complex, or labels.
        grid: the curated plane.
        nearest: use the nearest value (for labels) instead of linear interpolation.
    """
    if not grid.interpolates:
        return _crop_and_pad(array, grid)
    if np.iscomplexobj(array):
        real, imaginary = resample(array.real, grid), resample(array.imag, grid)
        return np.asarray(real + 1j * imaginary, dtype=np.complex64)
    source = array
    if not nearest:
        source = np.asarray(array, dtype=np.float32)
        for axis, factor in ((1, grid.scale[0]), (2, grid.scale[1])):
            if factor > 1:
                source = ndimage.gaussian_filter1d(source, (factor - 1) / 2, axis=axis, mode="nearest", truncate=3)
    shape = (array.shape[0], grid.size, grid.size)
    resampled = ndimage.affine_transform(
        source, np.array([1.0, *grid.scale]), np.array([0.0, *grid.offset]), shape, order=0 if nearest else 1, mode="constant"
    )
    return np.asarray(resampled)
