"""Intensity scale of a volume."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SCALE_PERCENTILE = 99.5


def compute_intensity_scale(magnitude: NDArray[np.floating[Any]]) -> float:
    """Return the 99.5th percentile of the finite values; 1 if there is no signal."""
    finite = magnitude[np.isfinite(magnitude)]
    scale = float(np.percentile(finite, SCALE_PERCENTILE)) if finite.size else 0.0
    return scale if scale > 0 else 1.0
