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
"""Conjugate-gradient steps with several coils."""
PRIOR_WEIGHT = 0.02
"""Weight of the network's image in data consistency with several coils (MoDL, Aggarwal et al., arXiv:1712.02862).

Without it, components that the coils hardly encode take noise for signal: on validation slices (8 coils, 4x and 6x) it gains 0.1 to
0.6 dB and 0.06 to 0.08 of SSIM (docs/LOG.md). Sensitivities have a sum of squares of 1: what the coils encode well differs from the
measurement by 2 % of what the network would change.
"""
_CONVERGED = 1e-10
"""Share of the squared residual that is rounding in float32; further steps would divide noise by noise."""


@dataclass(frozen=True)
class KSpaceMeasurement:
    """The measured k-space of a batch.

    Attributes:
        kspace_BCDHW: complex64, zeros where not measured.
        sampling_BDHW: bool, True = measured, the same for every coil; all False for a sample without a measurement.
        coil_maps_BCDHW: complex64 sensitivities with a sum of squares of 1 (0 outside of the object), zeros for coils that a sample
            does not have; None = one coil of uniform sensitivity.
    """

    kspace_BCDHW: Tensor
    sampling_BDHW: Tensor
    coil_maps_BCDHW: Tensor | None = None

    @classmethod
    def empty(cls, pixel_values_B1DHW: Tensor) -> KSpaceMeasurement:
        """Return a measurement of these images in which no sample is measured."""
        zeros = torch.zeros_like(pixel_values_B1DHW)
        return cls(zeros.to(torch.complex64), zeros[:, 0].bool())

    @property
    def has_coils_B(self) -> Tensor:
        """Samples with several coils, bool."""
        if self.coil_maps_BCDHW is None:
            return torch.zeros(len(self.sampling_BDHW), dtype=torch.bool, device=self.sampling_BDHW.device)
        return (self.coil_maps_BCDHW[:, 1:] != 0).flatten(1).any(1)

    def rows(self, rows_B: Tensor) -> KSpaceMeasurement:
        """Return the measurement of some samples, given by a mask or by indices."""
        maps = self.coil_maps_BCDHW
        return KSpaceMeasurement(self.kspace_BCDHW[rows_B], self.sampling_BDHW[rows_B], None if maps is None else maps[rows_B])

    def to(self, device: torch.device | str) -> KSpaceMeasurement:
        """Return the measurement on a device."""
        maps = self.coil_maps_BCDHW
        return KSpaceMeasurement(
            self.kspace_BCDHW.to(device), self.sampling_BDHW.to(device), None if maps is None else maps.to(device)
        )

    def adjoint(self, kspace_BCDHW: Tensor | None = None) -> Tensor:
        """Apply ``E^H`` to the measured k-space, or to another: the zero-filled complex image (B, D, H, W)."""
        coils = ifft2c(self.kspace_BCDHW if kspace_BCDHW is None else kspace_BCDHW * self.sampling_BDHW[:, None])
        return coils[:, 0] if self.coil_maps_BCDHW is None else (self.coil_maps_BCDHW.conj() * coils).sum(1)

    def first_image(self) -> Tensor:
        """Return the complex image (B, D, H, W) that a reconstruction starts from.

        With one coil it is the zero-filled one. Several coils tell much of what is missing: :data:`ITERATIONS` conjugate-gradient
        steps of SENSE (Pruessmann et al., Magn Reson Med 46:638, 2001) from zero, which are too few to amplify noise.
        """
        zero_filled, several_B = self.adjoint(), self.has_coils_B
        if not several_B.any():
            return zero_filled
        return torch.where(several_B[:, None, None, None], _solve_normal_equations(zero_filled, self), zero_filled)

    def phase(self) -> Tensor:
        """Return the phase of the image of the fully measured center of k-space, (B, D, H, W), rad.

        It is smooth, as the phase of an image mostly is, and free of the aliasing of the zero-filled image (homodyne detection,
        Noll et al., IEEE Trans Med Imaging 10:154, 1991). With one line at the center or none it is that of the zero-filled image.
        """
        height, width = self.sampling_BDHW.shape[-2:]
        columns_BDW = _central_run(self.sampling_BDHW[..., height // 2, :])
        rows_BDH = _central_run(self.sampling_BDHW[..., width // 2])
        has_center_BD = (rows_BDH.sum(-1) > 1) & (columns_BDW.sum(-1) > 1)
        center_BDHW = (rows_BDH[..., None] & columns_BDW[..., None, :]) | ~has_center_BD[..., None, None]
        return torch.angle(self.adjoint(self.kspace_BCDHW * center_BDHW[:, None]))

    def encode(self, image_BDHW: Tensor) -> Tensor:
        """Apply ``E`` to a complex image: k-space of every coil (B, C, D, H, W), zeros where nothing is measured."""
        coils = image_BDHW[:, None] if self.coil_maps_BCDHW is None else self.coil_maps_BCDHW * image_BDHW[:, None]
        return fft2c(coils) * self.sampling_BDHW[:, None]


def enforce_data_consistency(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return the magnitude image, changed as little as agreement with the measurement requires.

    The phase is :meth:`KSpaceMeasurement.phase`. Samples without a measurement stay as they are. With one coil, measured lines
    replace those of the image exactly. With several, solve ``min || E (x + d) - y ||^2 + w || d ||^2`` with ``w`` of
    :data:`PRIOR_WEIGHT` by :data:`ITERATIONS` conjugate-gradient steps.
    """
    sampling = measured.sampling_BDHW
    if not sampling.any():
        return image_BDHW
    several_B = measured.has_coils_B
    if several_B.all():
        result = _solve(image_BDHW, measured)
    elif not several_B.any():
        result = _replace_lines(image_BDHW, measured)
    else:
        result = torch.empty_like(image_BDHW, dtype=measured.kspace_BCDHW.dtype)
        for rows_B, solve in ((several_B, _solve), (~several_B, _replace_lines)):
            result = result.index_copy(0, rows_B.nonzero()[:, 0], solve(image_BDHW[rows_B], measured.rows(rows_B)))
    return torch.where(sampling.flatten(1).any(1)[:, None, None, None], result.abs(), image_BDHW)


def _central_run(is_measured: Tensor) -> Tensor:
    """Return the positions (..., N) around the center, N // 2, up to the first gap on either side; as many on both sides.

    Of an even number, the first position has no counterpart: it counts where all others do.
    """
    center, reach = is_measured.shape[-1] // 2, (is_measured.shape[-1] - 1) // 2
    after = is_measured[..., center : center + reach + 1]
    before = is_measured[..., center - reach : center + 1].flip(-1)
    run = (after & before).int().cumprod(-1).bool()
    result = torch.zeros_like(is_measured)
    result[..., center : center + reach + 1] = run
    result[..., center - reach : center + 1] = run.flip(-1)
    result[..., : center - reach] = is_measured[..., : center - reach] & run[..., -1:]
    return result


def _replace_lines(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return complex images of one coil with the measured lines in place of their own."""
    kspace_BDHW = measured.kspace_BCDHW[:, 0]
    image = torch.polar(image_BDHW.float(), measured.phase())
    return ifft2c(torch.where(measured.sampling_BDHW, kspace_BDHW, fft2c(image)))


def _solve(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return complex images whose k-space is closer to the measured one of every coil."""
    image = torch.polar(image_BDHW.float(), measured.phase())
    gradient = measured.adjoint(measured.kspace_BCDHW - measured.encode(image))
    return image + _solve_normal_equations(gradient, measured, PRIOR_WEIGHT)


def _solve_normal_equations(right_BDHW: Tensor, measured: KSpaceMeasurement, weight: float = 0.0) -> Tensor:
    """Solve ``(E^H E + weight) d = right`` by conjugate gradients from 0, every slice independently."""

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).sum((-2, -1), keepdim=True).real

    solution, residual = torch.zeros_like(right_BDHW), right_BDHW
    direction, squared = residual, inner(residual, residual)
    threshold, tiny = _CONVERGED * squared, torch.finfo(squared.dtype).tiny
    for _ in range(ITERATIONS):
        image = measured.adjoint(measured.encode(direction)) + weight * direction
        step = torch.where(squared > threshold, squared / inner(direction, image).clamp(min=tiny), 0)
        solution, residual = solution + step * direction, residual - step * image
        previous, squared = squared, inner(residual, residual)
        direction = residual + squared / previous.clamp(min=tiny) * direction
    return solution
