"""Sampling masks besides the random one of training: equispaced and magic, as defined by fastMRI.

Both sample the ``centre_fraction`` of columns at the center of k-space, and as many others as give ``columns / acceleration``
in all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.curation.undersampling import centre_fraction_of, sampling_mask
from components.settings import MaskKind


def sweep_mask(kind: MaskKind, columns: int, acceleration: int, seed: int) -> NDArray[np.bool_]:
    """Return the sampled columns (W,), zero frequency in the middle; the same arguments give the same mask."""
    if kind == "random":
        return sampling_mask(columns, acceleration, centre_fraction_of(acceleration), seed)
    center = round(columns * centre_fraction_of(acceleration))
    rng = np.random.default_rng(seed)
    mask = _equispaced(columns, center, acceleration, rng) if kind == "equispaced" else _magic(columns, center, acceleration, rng)
    start = (columns - center + 1) // 2
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
