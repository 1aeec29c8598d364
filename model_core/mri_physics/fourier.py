"""Centered, orthonormal 2-D Fourier transforms of NumPy arrays (the convention of fastMRI)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

_PLANE = (-2, -1)


def fft2c(image: NDArray[Any]) -> NDArray[np.complex64]:
    """Transform an image (..., H, W) to k-space (..., H, W), zero frequency at (H // 2, W // 2)."""
    spectrum = fft.fft2(fft.ifftshift(image, axes=_PLANE), axes=_PLANE, norm="ortho")
    return np.asarray(fft.fftshift(spectrum, axes=_PLANE), dtype=np.complex64)


def ifft2c(kspace: NDArray[Any]) -> NDArray[np.complex64]:
    """Transform k-space (..., H, W) to a complex image (..., H, W), the inverse of :func:`fft2c`."""
    image = fft.ifft2(fft.ifftshift(kspace, axes=_PLANE), axes=_PLANE, norm="ortho")
    return np.asarray(fft.fftshift(image, axes=_PLANE), dtype=np.complex64)
