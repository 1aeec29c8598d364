"""Other ways to leave out columns than the random one of training: equispaced and magic, by the definitions of fastMRI.

Both keep the lowest ``centre_fraction`` of the columns, and as many of the others as make up ``columns / acceleration`` in all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.curation.undersampling import centre_fraction_of, sampling_mask
from components.settings import MaskKind


def mask_of(kind: MaskKind, columns: int, acceleration: int, seed: int) -> NDArray[np.bool_]:
    """Measured columns (W,), the centre in the middle; the same arguments give the same mask."""
    if kind == "random":
        return sampling_mask(columns, acceleration, centre_fraction_of(acceleration), seed)
    centre = round(columns * centre_fraction_of(acceleration))
    rng = np.random.default_rng(seed)
    mask = _equispaced(columns, centre, acceleration, rng) if kind == "equispaced" else _magic(columns, centre, acceleration, rng)
    start = (columns - centre + 1) // 2
    mask[start : start + centre] = True
    return mask


def _equispaced(columns: int, centre: int, acceleration: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Every so many columns from a random first one; with the centre, a share of 1 / acceleration."""
    mask = np.zeros(columns, dtype=np.bool_)
    step = acceleration * (centre - columns) / (centre * acceleration - columns)
    places = np.around(np.arange(rng.integers(0, max(round(step), 1)), columns - 1, step)).astype(int)
    mask[places] = True
    return mask


def _magic(columns: int, centre: int, acceleration: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Equispaced on either side of the centre, one side shifted, so that conjugate symmetry fills what the other leaves out."""
    wanted = round(columns / acceleration) - centre
    mask = np.zeros(columns, dtype=np.bool_)
    if wanted <= 0:
        return mask
    step = round(columns / wanted)
    offset = int(rng.integers(0, step))
    right, left = (offset + 1, offset + 2) if offset % 2 == 0 else (offset + 2, offset - 1)
    half = (columns + 1) // 2
    positive, negative = np.zeros(half, dtype=np.bool_), np.zeros(columns - half, dtype=np.bool_)
    positive[right::step] = True
    negative[left::step] = True
    return np.asarray(np.fft.fftshift(np.concatenate([positive, negative[::-1]])))
