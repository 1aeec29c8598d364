"""Undersampling of Cartesian k-space by fastMRI's random, equispaced and magic masks (Zbontar et al., arXiv:1811.08839).

Every mask samples the lowest ``center_fraction`` of the phase-encoding columns in full, and as many others as give
``columns / acceleration`` in all (in expectation for the random mask). Undersampled data are never stored: an instruction records
acceleration, center fraction and seed, and the input is computed when it is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_core.mri_physics.fourier import ifft2c_numpy

CENTER_BUDGET = 0.32
"""Center fraction x acceleration: 0.08 at 4x and 0.04 at 8x, as in the fastMRI challenge."""


def center_fraction_of(acceleration: int) -> float:
    """Return the fully sampled share of columns for an acceleration (1 for no acceleration)."""
    return min(1.0, CENTER_BUDGET / acceleration) if acceleration > 1 else 1.0


def random_mask(columns: int, acceleration: int, center_fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return the sampled columns (W,) of fastMRI's random mask; the same arguments give the same mask on every machine.

    Raises:
        ValueError: an acceleration below 1, or a center that alone exceeds ``columns / acceleration``.
    """
    center = round(columns * center_fraction)
    if acceleration < 1 or not 0 < center_fraction <= 1:
        raise ValueError(f"acceleration {acceleration} must be at least 1, center fraction {center_fraction} in (0, 1]")
    if acceleration == 1:
        return np.ones(columns, dtype=np.bool_)
    expected = columns / acceleration - center
    if expected < 0:
        raise ValueError(f"the center alone ({center} of {columns} columns) exceeds 1/{acceleration}: lower {center_fraction}")
    mask = np.random.default_rng(seed).uniform(size=columns) < expected / (columns - center)
    return _with_center(mask, center)


def create_mask(kind: str, columns: int, acceleration: int, seed: int) -> NDArray[np.bool_]:
    """Return the sampled columns (W,) of a ``"random"``, ``"equispaced"`` or ``"magic"`` mask; deterministic in its arguments."""
    if kind == "random":
        return random_mask(columns, acceleration, center_fraction_of(acceleration), seed)
    center = round(columns * center_fraction_of(acceleration))
    rng = np.random.default_rng(seed)
    outside = _equispaced if kind == "equispaced" else _magic
    return _with_center(outside(columns, center, acceleration, rng), center)


def undersample(kspace: NDArray[Any], mask: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.complex64]]:
    """Keep the sampled columns (W,), or points (H, W), of the k-space (..., H, W) of one coil.

    Returns:
        The zero-filled magnitude image (..., H, W) float32, and the sampled k-space complex64, zeros elsewhere.
    """
    sampled = np.where(mask, kspace, 0).astype(np.complex64)
    return np.abs(ifft2c_numpy(sampled)).astype(np.float32), sampled


def _with_center(mask: NDArray[np.bool_], center: int) -> NDArray[np.bool_]:
    start = (len(mask) - center + 1) // 2
    mask[start : start + center] = True
    return mask


def _equispaced(columns: int, center: int, acceleration: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Sample columns at a constant distance from a random first one: with the center, a share of 1 / acceleration."""
    mask = np.zeros(columns, dtype=np.bool_)
    step = acceleration * (center - columns) / (center * acceleration - columns)
    indices = np.around(np.arange(rng.integers(0, max(round(step), 1)), columns - 1, step)).astype(int)
    mask[indices] = True
    return mask


def _magic(columns: int, center: int, acceleration: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Sample equispaced columns on either side of the center, one side shifted: conjugate symmetry then adds new columns."""
    count = round(columns / acceleration) - center
    mask = np.zeros(columns, dtype=np.bool_)
    if count <= 0:
        return mask
    step = round(columns / count)
    offset = int(rng.integers(0, step))
    right, left = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    half = (columns + 1) // 2
    positive, negative = np.zeros(half, dtype=np.bool_), np.zeros(columns - half, dtype=np.bool_)
    positive[right::step] = True
    negative[left::step] = True
    return np.asarray(np.fft.fftshift(np.concatenate([positive, negative[::-1]])))
