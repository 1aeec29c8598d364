"""Sampled columns and coil sensitivities of a multi-coil measurement, estimated from its k-space.

Shape letters: D slices, C coils, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model_core.mri_physics.fourier import ifft2c_numpy

KERNEL, CALIBRATION = 6, 24
"""ESPIRiT's kernel and the side of its calibration region, k-space points (sigpy's defaults)."""
SMOOTH_LINES = 24
"""Lowest frequencies of each axis from which smooth coil images are computed."""
_MEASURED = 1e-6
"""Smallest magnitude of a measured column, relative to the largest: less is rounding of the Fourier transform of a reader."""


def measured_columns(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Return the phase-encoding columns (W,) that contain data."""
    strongest = np.abs(kspace_DCHW).max(axis=(0, 1, 2))
    return np.asarray(strongest > _MEASURED * strongest.max())


def calibration_width(columns_W: NDArray[np.bool_]) -> int:
    """Return the number of columns that are measured without a gap, symmetric about the center."""
    center = len(columns_W) // 2
    gaps = np.flatnonzero(~columns_W)
    left, right = gaps[gaps <= center], gaps[gaps > center]
    first, last = (left.max() + 1 if left.size else 0), (right.min() if right.size else len(columns_W))
    return int(max(2 * min(center - first, last - center), 0))


def estimate_sensitivities(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Estimate the coil maps of every slice, normalized to a sum of squares of 1.

    Use ESPIRiT (sigpy). If the fully measured center is too narrow for its calibration, divide low-resolution coil images by their
    root sum of squares instead.
    """
    from sigpy.mri.app import EspiritCalib

    width = min(CALIBRATION, calibration_width(measured_columns(kspace_DCHW)), kspace_DCHW.shape[2])
    if width < 2 * KERNEL:
        return low_resolution_sensitivities(kspace_DCHW, max(width, 2))
    # No eigenvalue threshold: a map of zero would discard what was measured there.
    options = {"calib_width": width, "kernel_width": KERNEL, "crop": 0, "show_pbar": False}
    maps = [EspiritCalib(kspace_CHW, **options).run() for kspace_CHW in kspace_DCHW]
    return np.asarray(np.stack(maps), dtype=np.complex64)


def low_resolution_sensitivities(kspace_DCHW: NDArray[np.complex64], lines: int = SMOOTH_LINES) -> NDArray[np.complex64]:
    """Return the coil images of the lowest ``lines`` frequencies of each axis over their root sum of squares, (D, C, H, W)."""
    rows, columns = kspace_DCHW.shape[-2:]
    low = np.zeros_like(kspace_DCHW)
    center = tuple(slice(max(n // 2 - lines // 2, 0), n // 2 + lines // 2) for n in (rows, columns))
    low[..., center[0], center[1]] = kspace_DCHW[..., center[0], center[1]]
    smooth = ifft2c_numpy(low)
    root = np.sqrt((np.abs(smooth) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(smooth / np.maximum(root, np.finfo(np.float32).tiny), dtype=np.complex64)
