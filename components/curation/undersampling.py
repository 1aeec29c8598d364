"""Undersampling of Cartesian k-space, by the definition of fastMRI's random mask (Zbontar et al., arXiv:1811.08839).

The lowest ``centre_fraction`` of the phase-encoding columns is measured in full; every other column is measured with the
probability that makes ``columns / acceleration`` the expected number. Nothing undersampled is stored: an instruction records
acceleration, centre fraction and seed, and the input is made when it is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from model_core.mri_physics.fourier_numpy import ifft2c

CENTRE_BUDGET = 0.32
"""centre fraction x acceleration: .08 at 4x and .04 at 8x, as in the fastMRI challenge."""


def centre_fraction_of(acceleration: int) -> float:
    """The fully sampled share of columns that goes with an acceleration (1 where nothing is left out)."""
    return min(1.0, CENTRE_BUDGET / acceleration) if acceleration > 1 else 1.0


def sampling_mask(columns: int, acceleration: int, centre_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Measured columns, (W,) bool; the same arguments give the same mask on every machine.

    Raises:
        BadInput: an acceleration below 1, or a centre that alone holds more than ``columns / acceleration``.
    """
    low_frequencies = round(columns * centre_fraction)
    if acceleration < 1 or not 0 < centre_fraction <= 1:
        raise BadInput(
            "acceleration is at least 1 and 0 < centre fraction <= 1",
            where=f"acceleration {acceleration}, centre fraction {centre_fraction}",
            remedy="e.g. 4 with 0.08",
        )
    if acceleration == 1:
        return np.ones(columns, dtype=np.bool_)
    wanted = columns / acceleration - low_frequencies
    if wanted < 0:
        raise BadInput(
            f"the centre alone ({low_frequencies} columns) is more than 1/{acceleration} of {columns}",
            where=f"centre fraction {centre_fraction}",
            remedy=f"at most {1 / acceleration:.3f}",
        )
    mask = np.random.default_rng(seed).uniform(size=columns) < wanted / (columns - low_frequencies)
    start = (columns - low_frequencies + 1) // 2
    mask[start : start + low_frequencies] = True
    return mask


def undersample(kspace: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
    """Keep the measured columns of (H, W) k-space.

    Returns:
        The zero-filled magnitude image (H, W) float32, and the measured k-space (H, W) complex64, zeros elsewhere.
    """
    measured = np.where(mask[None, :], kspace, 0).astype(np.complex64)
    return np.abs(ifft2c(measured)).astype(np.float32), measured
