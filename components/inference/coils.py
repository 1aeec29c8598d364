"""What a multi-coil measurement says before any network: which columns were measured, and how each coil sees.

Shape letters: D slices, C coils, H rows, W columns.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.curation.curate_volume import low_resolution_sensitivities

KERNEL, CALIBRATION = 6, 24
"""ESPIRiT's kernel and the side of its calibration region, k-space points (sigpy's defaults)."""
_MEASURED = 1e-6
"""Of the largest value: less is the rounding of a Fourier transform, which readers put between file and volume."""


def measured_columns(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Phase-encoding columns (W,) that hold data."""
    strongest = np.abs(kspace_DCHW).max(axis=(0, 1, 2))
    return np.asarray(strongest > _MEASURED * strongest.max())


def calibration_width(columns_W: NDArray[np.bool_]) -> int:
    """Columns measured without a gap on both sides of the centre."""
    centre = len(columns_W) // 2
    gaps = np.flatnonzero(~columns_W)
    left, right = gaps[gaps <= centre], gaps[gaps > centre]
    first, last = (left.max() + 1 if left.size else 0), (right.min() if right.size else len(columns_W))
    return int(max(2 * min(centre - first, last - centre), 0))


def sensitivities(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Coil maps of every slice, sum of squares 1: by ESPIRiT (sigpy), or, where the fully measured centre is too narrow for its
    calibration, coil images of low resolution over their root-sum-of-squares."""
    from sigpy.mri.app import EspiritCalib

    width = min(CALIBRATION, calibration_width(measured_columns(kspace_DCHW)), kspace_DCHW.shape[2])
    if width < 2 * KERNEL:
        return low_resolution_sensitivities(kspace_DCHW, max(width, 2))
    # No eigenvalue threshold: a map of zero would leave out what was measured there.
    maps = [EspiritCalib(one, calib_width=width, kernel_width=KERNEL, crop=0, show_pbar=False).run() for one in kspace_DCHW]
    return np.asarray(np.stack(maps), dtype=np.complex64)
