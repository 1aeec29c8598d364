"""Images of the decoder are magnitudes that agree with the measurement.

Shape letters: B samples, D slices, H rows, W columns.
"""

import pytest
import torch
from torch import Tensor

from model_core.config import REFINEMENTS, OmniMRIConfig
from model_core.heads.image_decoder import Conditions, ImageDecoder
from model_core.mri_physics.fourier import fft2c
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.targets import TARGET_IMAGE, TARGET_MASK

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


class _Halfway(ImageDecoder):
    """A network that changes any image halfway towards the true one, and counts its passes."""

    def __init__(self, truth_B1DHW: Tensor) -> None:
        super().__init__(OmniMRIConfig.from_preset("debug"))
        self.truth_B1DHW, self.passes = truth_B1DHW, [0]

    def forward(self, noisy_B1DHW: Tensor, time_B: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        self.passes[0] += 1
        difference = self.truth_B1DHW[: len(time_B)] - conditions.pixel_values_B1DHW
        return difference / (2 * self.residual_scale), noisy_B1DHW


def _conditions(pixels_B1DHW: Tensor, kind: int, measured: KSpaceMeasurement) -> Conditions:
    count = len(pixels_B1DHW)
    return Conditions(pixels_B1DHW, [torch.zeros(count, 1, 8, 8, 16)], torch.zeros(count, 32), torch.full((count,), kind), measured)


def test_a_reconstruction_is_refined_before_it_is_drawn(body_B1DHW: Tensor) -> None:
    """Every pass starts from the data-consistent estimate of the one before, and several draws share them."""
    network, measured = _Halfway(body_B1DHW), _measure(body_B1DHW)
    first = estimate = measured.adjoint().abs()[:, None]
    for _ in range(REFINEMENTS + 1):
        estimate = network.decode_image((body_B1DHW - estimate) / (2 * network.residual_scale), estimate, measured)
    drawn = network.sample(_conditions(first, TARGET_IMAGE, measured), [0], draws=3)
    assert network.passes == [REFINEMENTS + 3]
    for image in drawn:
        torch.testing.assert_close(image, estimate, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [TARGET_IMAGE, TARGET_MASK])
def test_what_has_no_measurement_is_not_refined(body_B1DHW: Tensor, kind: int) -> None:
    network = _Halfway(body_B1DHW)
    network.sample(_conditions(body_B1DHW / 2, kind, KSpaceMeasurement.empty(body_B1DHW)), [0])
    assert network.passes == [1]


def test_a_network_that_was_saved_before_it_learned_to_refine_answers_as_it_did(body_B1DHW: Tensor) -> None:
    network, measured = _Halfway(body_B1DHW), _measure(body_B1DHW)
    network.refinements = OmniMRIConfig.from_dict({"model_type": "omnimri"}).refinements
    network.sample(_conditions(measured.adjoint().abs()[:, None], TARGET_IMAGE, measured), [0])
    assert network.passes == [1]


def test_only_the_chosen_samples_start_from_their_estimate(body_B1DHW: Tensor) -> None:
    """The network runs even if none is chosen, so that all processes gather its weights."""
    network, measured = _Halfway(body_B1DHW), _measure(body_B1DHW)
    first, both = measured.adjoint().abs()[:, None], torch.tensor([0, 0])
    conditions = _conditions(first, TARGET_IMAGE, measured).rows(both)
    refined = network.refine(conditions, torch.tensor([False, True])).pixel_values_B1DHW
    assert torch.equal(refined[0], first[0]) and (refined[1] - body_B1DHW[0]).abs().mean() < (first - body_B1DHW).abs().mean()
    assert torch.equal(network.refine(conditions, torch.tensor([False, False])).pixel_values_B1DHW, first[both])
    assert network.passes == [2]
