"""The measurement of parallel imaging (SENSE), and images that are consistent with it.

The encoding operator is ``E = M F S``: coil sensitivities, centered orthonormal Fourier transform, sampling.

Shape letters: B samples, C coils, D slices, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.mri_physics.fourier import fft2c, ifft2c

ITERATIONS = 8
"""Conjugate-gradient steps with several coils. They stop early: components that the coils hardly encode are left to the network."""
_CONVERGED = 1e-10
"""Share of the squared residual that is rounding in float32; further steps would divide noise by noise."""


@dataclass(frozen=True)
class KSpaceMeasurement:
    """The measured k-space of a batch.

    Attributes:
        kspace_BCDHW: complex64, zeros where not measured.
        sampling_BDHW: bool, True = measured, the same for every coil; all False for a sample without a measurement.
        coil_maps_BCDHW: complex64 sensitivities with a sum of squares of 1 (0 outside of the object); None = one coil of uniform
            sensitivity.
    """

    kspace_BCDHW: Tensor
    sampling_BDHW: Tensor
    coil_maps_BCDHW: Tensor | None = None

    @classmethod
    def empty(cls, pixel_values_B1DHW: Tensor) -> KSpaceMeasurement:
        """Return a measurement of these images in which no sample is measured."""
        zeros = torch.zeros_like(pixel_values_B1DHW)
        return cls(zeros.to(torch.complex64), zeros[:, 0].bool())

    def adjoint(self, kspace_BCDHW: Tensor | None = None) -> Tensor:
        """Apply ``E^H`` to the measured k-space, or to another: the zero-filled complex image (B, D, H, W)."""
        coils = ifft2c(self.kspace_BCDHW if kspace_BCDHW is None else kspace_BCDHW * self.sampling_BDHW[:, None])
        return coils[:, 0] if self.coil_maps_BCDHW is None else (self.coil_maps_BCDHW.conj() * coils).sum(1)

    def encode(self, image_BDHW: Tensor) -> Tensor:
        """Apply ``E`` to a complex image: k-space of every coil (B, C, D, H, W), zeros where nothing is measured."""
        coils = image_BDHW[:, None] if self.coil_maps_BCDHW is None else self.coil_maps_BCDHW * image_BDHW[:, None]
        return fft2c(coils) * self.sampling_BDHW[:, None]


def enforce_data_consistency(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return the magnitude image, changed as little as agreement with the measurement requires.

    The phase is that of the zero-filled image: it is smooth, and its low frequencies are always measured. Samples without a
    measurement stay as they are. With one coil, measured lines replace those of the image exactly. With several, solve
    ``min || E (x + d) - y ||`` by :data:`ITERATIONS` conjugate-gradient steps from ``d = 0``.
    """
    sampling = measured.sampling_BDHW
    if not sampling.any():
        return image_BDHW
    image = torch.polar(image_BDHW.float(), torch.angle(measured.adjoint()))
    if measured.coil_maps_BCDHW is None:
        result = ifft2c(torch.where(sampling, measured.kspace_BCDHW[:, 0], fft2c(image)))
    else:
        gradient = measured.adjoint(measured.kspace_BCDHW - measured.encode(image))
        result = image + _solve_normal_equations(gradient, measured)
    return torch.where(sampling.flatten(1).any(1)[:, None, None, None], result.abs(), image_BDHW)


def _solve_normal_equations(right_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Solve ``E^H E d = right`` by conjugate gradients, every slice independently."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).sum((-2, -1), keepdim=True).real

    solution, residual = torch.zeros_like(right_BDHW), right_BDHW
    direction, squared = residual, inner(residual, residual)
    threshold, tiny = _CONVERGED * squared, torch.finfo(squared.dtype).tiny
    for _ in range(ITERATIONS):
        image = measured.adjoint(measured.encode(direction))
        step = torch.where(squared > threshold, squared / inner(direction, image).clamp(min=tiny), 0)
        solution, residual = solution + step * direction, residual - step * image
        previous, squared = squared, inner(residual, residual)
        direction = residual + squared / previous.clamp(min=tiny) * direction
    return solution
