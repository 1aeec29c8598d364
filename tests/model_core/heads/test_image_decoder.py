"""Images of the decoder are magnitudes that agree with the measurement.

Shape letters: B samples, D slices, H rows, W columns.
"""

import pytest
import torch
from torch import Tensor

from model_core.config import OmniMRIConfig
from model_core.heads.image_decoder import ImageDecoder
from model_core.mri_physics.fourier import fft2c
from model_core.mri_physics.sense import KSpaceMeasurement

SIZE = 32


@pytest.fixture(scope="module")
def decoder() -> ImageDecoder:
    return ImageDecoder(OmniMRIConfig.from_preset("debug"))


@pytest.fixture(scope="module")
def body_B1DHW() -> Tensor:
    image = torch.zeros(1, 1, 1, SIZE, SIZE)
    image[..., 8:24, 8:24] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    return image


def _measure(image_B1DHW: Tensor) -> KSpaceMeasurement:
    """Measure every fourth line and those in the center."""
    sampling = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool)
    sampling[..., ::4] = True
    sampling[..., SIZE // 2 - 2 : SIZE // 2 + 2] = True
    return KSpaceMeasurement(fft2c(image_B1DHW.to(torch.complex64)) * sampling[:, None], sampling)


def _predict(decoder: ImageDecoder, image_B1DHW: Tensor, zero_filled_B1DHW: Tensor) -> Tensor:
    """Return the prediction that is exactly this image."""
    return (image_B1DHW - zero_filled_B1DHW) / decoder.residual_scale


def test_a_negative_magnitude_counts_as_zero(decoder: ImageDecoder, body_B1DHW: Tensor) -> None:
    """Data consistency would take it for a signal of the opposite phase, which appears as a bright pixel."""
    measured = _measure(body_B1DHW)
    zero_filled = measured.adjoint().abs()[:, None]
    negative = torch.where(body_B1DHW > 0, body_B1DHW, torch.tensor(-0.2))
    decoded = decoder.decode_image(_predict(decoder, negative, zero_filled), zero_filled, measured)
    exact = decoder.decode_image(_predict(decoder, body_B1DHW, zero_filled), zero_filled, measured)
    torch.testing.assert_close(decoded, exact, atol=1e-5, rtol=0)


def test_an_image_without_a_measurement_is_not_negative(decoder: ImageDecoder, body_B1DHW: Tensor) -> None:
    decoded = decoder.decode_image(torch.full_like(body_B1DHW, -100), body_B1DHW, KSpaceMeasurement.empty(body_B1DHW))
    assert torch.equal(decoded, torch.zeros_like(body_B1DHW))


def test_training_starts_from_the_input_image(decoder: ImageDecoder, body_B1DHW: Tensor) -> None:
    """A new decoder predicts no change, also where the input is zero; there, as elsewhere, it learns."""
    residual = torch.zeros_like(body_B1DHW).requires_grad_()
    decoder.decode_image(residual, body_B1DHW, KSpaceMeasurement.empty(body_B1DHW)).sum().backward()
    assert residual.grad is not None
    assert (residual.grad > 0).all()
