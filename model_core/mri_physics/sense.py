"""The measurement of parallel imaging, and images that agree with it.

``E = M F S``: coil sensitivities, centred orthonormal Fourier transform, sampling.

Shape letters: B samples, C coils, D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.mri_physics.fourier_torch import fft2c, ifft2c

ITERATIONS = 8
"""Of conjugate gradients with several coils. Stopped early: what the coils hardly encode is left to the network."""
_SOLVED = 1e-10
"""Share of the squared residual that is rounding in float32; going on from there divides noise by noise."""


@dataclass(frozen=True)
class Measured:
    """What the scanner measured.

    Attributes:
        kspace_BCDHW: complex64, zeros where not measured.
        sampling_BDHW: bool, True = measured, the same for every coil; all False for a sample that was not measured.
        coil_maps_BCDHW: complex64 sensitivities with a sum of squares of 1 (0 outside of the object); None = one coil that sees
            everything alike.
    """

    kspace_BCDHW: Tensor
    sampling_BDHW: Tensor
    coil_maps_BCDHW: Tensor | None = None

    @classmethod
    def nothing(cls, pixel_values_B1DHW: Tensor) -> Measured:
        """No measurement of these images."""
        empty = torch.zeros_like(pixel_values_B1DHW)
        return cls(empty.to(torch.complex64), empty[:, 0].bool())

    def zero_filled(self, kspace_BCDHW: Tensor | None = None) -> Tensor:
        """``E^H y``: the complex image (B, D, H, W) of the measured k-space, or of another."""
        coils = ifft2c(self.kspace_BCDHW if kspace_BCDHW is None else kspace_BCDHW * self.sampling_BDHW[:, None])
        return coils[:, 0] if self.coil_maps_BCDHW is None else (self.coil_maps_BCDHW.conj() * coils).sum(1)

    def encode(self, image_BDHW: Tensor) -> Tensor:
        """``E x``: complex image -> k-space of every coil (B, C, D, H, W), zeros where nothing is measured."""
        coils = image_BDHW[:, None] if self.coil_maps_BCDHW is None else self.coil_maps_BCDHW * image_BDHW[:, None]
        return fft2c(coils) * self.sampling_BDHW[:, None]


def consistent(image_BDHW: Tensor, measured: Measured) -> Tensor:
    """The magnitude image, changed as little as it takes to agree with what was measured.

    The phase is that of the zero-filled image: it is smooth, and its low frequencies are always measured. Samples without
    measurement stay as they are. One coil: measured lines replace those of the image, exactly. Several: least squares,
    ``min || E (x + d) - y ||``, by :data:`ITERATIONS` conjugate gradients from ``d = 0``.
    """
    sampling = measured.sampling_BDHW
    if not sampling.any():
        return image_BDHW
    image = torch.polar(image_BDHW.float(), torch.angle(measured.zero_filled()))
    if measured.coil_maps_BCDHW is None:
        agreed = ifft2c(torch.where(sampling, measured.kspace_BCDHW[:, 0], fft2c(image)))
    else:
        missing = measured.zero_filled(measured.kspace_BCDHW - measured.encode(image))
        agreed = image + _least_squares(missing, measured)
    return torch.where(sampling.flatten(1).any(1)[:, None, None, None], agreed.abs(), image_BDHW)


def _least_squares(right_BDHW: Tensor, measured: Measured) -> Tensor:
    """Conjugate gradients on ``E^H E d = right``, each slice by itself."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).sum((-2, -1), keepdim=True).real

    solution, residual = torch.zeros_like(right_BDHW), right_BDHW
    direction, size = residual, inner(residual, residual)
    enough, tiny = _SOLVED * size, torch.finfo(size.dtype).tiny
    for _ in range(ITERATIONS):
        moved = measured.zero_filled(measured.encode(direction))
        step = torch.where(size > enough, size / inner(direction, moved).clamp(min=tiny), 0)
        solution, residual = solution + step * direction, residual - step * moved
        before, size = size, inner(residual, residual)
        direction = residual + size / before.clamp(min=tiny) * direction
    return solution
