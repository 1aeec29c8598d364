"""Centered, orthonormal 2-D Fourier transforms of PyTorch tensors (the convention of fastMRI)."""

from __future__ import annotations

import torch
from torch import Tensor

_AXES = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Transform an image (..., H, W) to k-space (..., H, W), complex64."""
    return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(image, dim=_AXES), norm="ortho"), dim=_AXES)


def ifft2c(kspace: Tensor) -> Tensor:
    """Transform k-space (..., H, W) to an image (..., H, W), complex64."""
    return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=_AXES), norm="ortho"), dim=_AXES)
