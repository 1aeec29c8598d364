"""Centered, orthonormal 2-D Fourier transforms of the last two axes, the convention of fastMRI.

:func:`fft2c` and :func:`ifft2c` transform torch tensors, :func:`fft2c_numpy` and :func:`ifft2c_numpy` numpy arrays (by scipy, in
the precision of the input). The module does not import torch, so that curation and ingestion start without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

if TYPE_CHECKING:
    from torch import Tensor

_PLANE = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Transform an image (..., H, W) to k-space (..., H, W), complex64, zero frequency at (H // 2, W // 2)."""
    import torch

    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=_PLANE), norm="ortho"), dim=_PLANE)


def ifft2c(kspace: Tensor) -> Tensor:
    """Transform k-space (..., H, W) to a complex image (..., H, W), complex64: the inverse of :func:`fft2c`."""
    import torch

    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_PLANE), norm="ortho"), dim=_PLANE)


def fft2c_numpy(image: NDArray[Any]) -> NDArray[np.complex64]:
    """Transform an image (..., H, W) to k-space (..., H, W), zero frequency at (H // 2, W // 2)."""
    spectrum = fft.fft2(fft.ifftshift(image, axes=_PLANE), axes=_PLANE, norm="ortho")
    return np.asarray(fft.fftshift(spectrum, axes=_PLANE), dtype=np.complex64)


def ifft2c_numpy(kspace: NDArray[Any]) -> NDArray[np.complex64]:
    """Transform k-space (..., H, W) to a complex image (..., H, W): the inverse of :func:`fft2c_numpy`."""
    image = fft.ifft2(fft.ifftshift(kspace, axes=_PLANE), axes=_PLANE, norm="ortho")
    return np.asarray(fft.fftshift(image, axes=_PLANE), dtype=np.complex64)
