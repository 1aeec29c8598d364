"""The numpy and the torch transforms agree with sigpy's, and with each other."""

from __future__ import annotations

import numpy as np
import pytest
import sigpy
import torch

from model_core.mri_physics.fourier import fft2c, fft2c_numpy, ifft2c, ifft2c_numpy


@pytest.fixture
def image() -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.normal(size=(33, 48)) + 1j * rng.normal(size=(33, 48))).astype(np.complex64)


def test_the_transform_is_centered_and_orthonormal_like_sigpy(image: np.ndarray) -> None:
    np.testing.assert_allclose(fft2c_numpy(image), sigpy.fft(image), atol=1e-5)
    np.testing.assert_allclose(ifft2c_numpy(fft2c_numpy(image)), image, atol=1e-5)


def test_torch_and_numpy_transform_alike(image: np.ndarray) -> None:
    tensor = torch.from_numpy(image)
    np.testing.assert_allclose(fft2c(tensor).numpy(), fft2c_numpy(image), atol=1e-5)
    np.testing.assert_allclose(ifft2c(tensor).numpy(), ifft2c_numpy(image), atol=1e-5)
