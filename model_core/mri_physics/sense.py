"""The measurement of parallel imaging (SENSE), and images that are consistent with it.

The encoding operator is ``E = M F S``: coil sensitivities, centered orthonormal Fourier transform, sampling.

Shape letters: B samples, C coils, D slices, H rows, W columns.
"""

from __future__ import annotations

import math
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
NOISE_DEVIATIONS = 4.0
"""Signal out of phase counts as noise up to this many standard deviations of the noise of k-space (see :func:`remove_noise`)."""
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

        With one coil it is the zero-filled one. Several coils determine much of what is missing: :data:`ITERATIONS`
        conjugate-gradient steps of SENSE (Pruessmann et al., Magn Reson Med 46:638, 2001) from zero, too few to
        amplify noise.
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
        rows_BDH, columns_BDW, has_center_BD = self._center()
        center_BDHW = (rows_BDH[..., None] & columns_BDW[..., None, :]) | ~has_center_BD[..., None, None]
        return torch.angle(self.adjoint(self.kspace_BCDHW * center_BDHW[:, None]))

    @property
    def has_center_BD(self) -> Tensor:
        """Slices of which more than one row and column around the center of k-space are fully measured, bool."""
        return self._center()[2]

    def _center(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows (B, D, H) and the columns (B, D, W) of the fully measured center, and :attr:`has_center_BD`, bool."""
        height, width = self.sampling_BDHW.shape[-2:]
        columns_BDW = _central_run(self.sampling_BDHW[..., height // 2, :])
        rows_BDH = _central_run(self.sampling_BDHW[..., width // 2])
        return rows_BDH, columns_BDW, (rows_BDH.sum(-1) > 1) & (columns_BDW.sum(-1) > 1)

    def noise(self) -> Tensor:
        """Return the standard deviation of the real part of the noise of k-space, (B, D, 1, 1), in the units of k-space.

        The magnitude of complex noise has a median of 1.18 standard deviations (Rayleigh). Measured samples in the corners of
        k-space, of every coil, hardly have anything else. Exact zeros (filled in, not measured) do not count; 0 without samples.
        """
        height, width = self.sampling_BDHW.shape[-2:]
        is_corner_HW = _outside(height, self.sampling_BDHW.device)[:, None] & _outside(width, self.sampling_BDHW.device)
        magnitude_BCDHW = self.kspace_BCDHW.abs()
        counts_BCDHW = (self.sampling_BDHW & is_corner_HW)[:, None] & (magnitude_BCDHW > 0)
        samples_BDN = torch.where(counts_BCDHW, magnitude_BCDHW, torch.nan).transpose(1, 2).flatten(2)
        return (samples_BDN.nanmedian(-1).values.nan_to_num() / math.sqrt(2 * math.log(2)))[..., None, None]

    def encode(self, image_BDHW: Tensor) -> Tensor:
        """Apply ``E`` to a complex image: k-space of every coil (B, C, D, H, W), zeros where nothing is measured."""
        coils = image_BDHW[:, None] if self.coil_maps_BCDHW is None else self.coil_maps_BCDHW * image_BDHW[:, None]
        return fft2c(coils) * self.sampling_BDHW[:, None]


def enforce_data_consistency(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return the magnitude image, changed as little as agreement with the measurement requires.

    The phase is :meth:`KSpaceMeasurement.phase`. Samples without a measurement stay as they are. With one coil, measured lines
    replace those of the image exactly. With several, solve ``min || E (x + d) - y ||^2 + w || d ||^2`` with ``w`` of
    :data:`PRIOR_WEIGHT` by :data:`ITERATIONS` conjugate-gradient steps, and :func:`remove_noise` where the phase is smooth.
    """
    sampling = measured.sampling_BDHW
    if not sampling.any():
        return image_BDHW
    phase_BDHW = measured.phase()
    image = torch.polar(image_BDHW.float(), phase_BDHW)
    if measured.coil_maps_BCDHW is None or not (several_B := measured.has_coils_B).any():
        result = _replace_lines(image, measured)
    elif several_B.all():
        result = remove_noise(_solve(image, measured), phase_BDHW, _noise_beside_smooth_phase(measured))
    else:
        rows, others = several_B.nonzero()[:, 0], (~several_B).nonzero()[:, 0]
        of_coils = measured.rows(rows)
        solved = remove_noise(_solve(image[rows], of_coils), phase_BDHW[rows], _noise_beside_smooth_phase(of_coils))
        result = image.index_copy(0, rows, solved).index_copy(0, others, _replace_lines(image[others], measured.rows(others)))
    return torch.where(sampling.flatten(1).any(1)[:, None, None, None], result.abs(), image_BDHW)


def remove_noise(image_BDHW: Tensor, phase_BDHW: Tensor, noise_BD11: Tensor) -> Tensor:
    """Return a complex image (B, D, H, W) relative to its phase, without noise out of phase.

    Signal has the smooth phase, noise has a random one (homodyne detection). The imaginary part and a negative real part are set
    to zero where they are below :data:`NOISE_DEVIATIONS` standard deviations ``noise_BD11``. Larger values are kept: they may be
    signal with a sharp change of the phase.
    """
    limit = NOISE_DEVIATIONS * noise_BD11
    relative = image_BDHW * torch.polar(torch.ones_like(phase_BDHW), -phase_BDHW)
    in_phase = torch.where(relative.real < -limit, relative.real, relative.real.clamp(min=0))
    return torch.complex(in_phase, torch.where(relative.imag.abs() > limit, relative.imag, 0))


def _noise_beside_smooth_phase(measured: KSpaceMeasurement) -> Tensor:
    """Return the noise, (B, D, 1, 1); 0 where no center of k-space was measured, so that nothing is removed."""
    return measured.noise() * measured.has_center_BD[..., None, None]


def _outside(length: int, device: torch.device) -> Tensor:
    """Return about a quarter of the frequencies, those farthest from the center, length // 2; bool."""
    return (torch.arange(length, device=device) - length // 2).abs() > 3 * length // 8


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
    return ifft2c(torch.where(measured.sampling_BDHW, measured.kspace_BCDHW[:, 0], fft2c(image_BDHW)))


def _solve(image_BDHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
    """Return complex images whose k-space is closer to the measured one of every coil."""
    gradient = measured.adjoint(measured.kspace_BCDHW - measured.encode(image_BDHW))
    return image_BDHW + _solve_normal_equations(gradient, measured, PRIOR_WEIGHT)


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
