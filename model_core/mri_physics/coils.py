"""Coils of a measurement: pre-whitening, virtual coils, sampled columns, and sensitivities estimated from k-space.

Shape letters: D slices, C coils, V virtual coils, N samples, H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from model_core.mri_physics.fourier import ifft2c_numpy

KERNEL, CALIBRATION = 6, 24
"""ESPIRiT's kernel and the side of its calibration region, k-space points (sigpy's defaults)."""
SMOOTH_LINES = 24
"""Lowest frequencies of each axis from which smooth coil images are computed."""
_MEASURED = 1e-6
"""Smallest magnitude of a measured column, relative to the largest: less is rounding of the Fourier transform of a reader."""


VIRTUAL_COILS = 8
"""Largest number of coils that are stored and reconstructed from; more are compressed to it."""
_CONDITION = 1e5
"""Condition number from which on a noise covariance in single precision cannot be inverted."""


def noise_covariance(noise_CN: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Return the (C, C) covariance of the samples of a noise scan, whose mean is zero."""
    noise = noise_CN.astype(np.complex128)
    return np.asarray(noise @ noise.conj().T / max(noise.shape[1] - 1, 1), dtype=np.complex64)


def whitening_matrix(covariance_CC: NDArray[np.complex64]) -> NDArray[np.complex128] | None:
    """Return the (C, C) matrix that decorrelates the noise of the coils and gives all of them the same variance.

    It is the inverse of the Cholesky factor of the noise covariance, as in the ISMRMRD tools (Hansen and Kellman, J Magn Reson
    Imaging 2015), with determinant 1: the signal keeps its scale. None = the covariance cannot be inverted.
    """
    covariance = covariance_CC.astype(np.complex128)
    if not np.isfinite(covariance).all():
        return None
    eigenvalues = np.linalg.eigvalsh(covariance)
    if eigenvalues[0] * _CONDITION <= eigenvalues[-1]:
        return None
    factor = np.linalg.cholesky(covariance)
    return np.asarray(np.linalg.inv(factor) * np.exp(np.log(np.abs(np.diag(factor))).mean()))


def mix_coils(matrix_VC: NDArray[Any], kspace_CHW: NDArray[Any]) -> NDArray[np.complex64]:
    """Return linear combinations (V, H, W) of the coils."""
    return np.asarray(np.tensordot(matrix_VC, kspace_CHW, 1), dtype=np.complex64)


def compress_coils(kspace_DCHW: NDArray[np.complex64], coils: int = VIRTUAL_COILS) -> NDArray[np.complex64]:
    """Return virtual coils (D, V, H, W) with the most energy; at most ``coils`` coils stay as they are.

    Geometric-decomposition coil compression (Zhang et al., Magn Reson Med 2013): the readout (rows) is fully sampled, so that each
    of its positions has virtual coils of its own, the singular vectors of the samples there, aligned to those of its neighbor.
    Columns without data stay without data. The root sum of squares loses the energy of the discarded coils only.
    """
    slices, present, rows, columns = kspace_DCHW.shape
    if present <= coils:
        return kspace_DCHW
    compressed = np.empty((slices, coils, rows, columns), np.complex64)
    for kspace_CHW, target in zip(kspace_DCHW, compressed, strict=True):
        along = fft.fftshift(fft.ifft(fft.ifftshift(kspace_CHW, axes=1), axis=1, norm="ortho"), axes=1).transpose(1, 0, 2)
        _, vectors = np.linalg.eigh((along @ along.conj().transpose(0, 2, 1)).astype(np.complex128))
        mixed = _align(vectors[..., ::-1][..., :coils].conj().transpose(0, 2, 1)) @ along
        target[:] = fft.fftshift(fft.fft(fft.ifftshift(mixed.transpose(1, 0, 2), axes=1), axis=1, norm="ortho"), axes=1)
    return compressed


def _align(matrices_HVC: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Rotate the virtual coils of every row to be closest to those of its neighbor on the side of the center."""
    center = len(matrices_HVC) // 2
    for rows, step in ((range(center + 1, len(matrices_HVC)), -1), (range(center - 1, -1, -1), 1)):
        for row in rows:
            left, _, right = np.linalg.svd(matrices_HVC[row] @ matrices_HVC[row + step].conj().T)
            matrices_HVC[row] = (left @ right).conj().T @ matrices_HVC[row]
    return matrices_HVC


def measured_columns(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """Return the phase-encoding columns (W,) that contain data."""
    strongest = np.abs(kspace_DCHW).max(axis=(0, 1, 2))
    return np.asarray(strongest > _MEASURED * strongest.max())


def calibration_width(columns_W: NDArray[np.bool_]) -> int:
    """Return the number of columns that are measured without a gap, symmetric about the center."""
    center = len(columns_W) // 2
    gaps = np.flatnonzero(~columns_W)
    left, right = gaps[gaps <= center], gaps[gaps > center]
    first, last = (left.max() + 1 if left.size else 0), (right.min() if right.size else len(columns_W))
    return int(max(2 * min(center - first, last - center), 0))


def estimate_sensitivities(kspace_DCHW: NDArray[np.complex64]) -> NDArray[np.complex64]:
    """Estimate the coil maps of every slice, normalized to a sum of squares of 1.

    Use ESPIRiT (sigpy). If the fully measured center is too narrow for its calibration, divide low-resolution coil images by their
    root sum of squares instead.
    """
    from sigpy.mri.app import EspiritCalib

    width = min(CALIBRATION, calibration_width(measured_columns(kspace_DCHW)), kspace_DCHW.shape[2])
    if width < 2 * KERNEL:
        return low_resolution_sensitivities(kspace_DCHW, max(width, 2))
    # No eigenvalue threshold: a map of zero would discard what was measured there.
    options = {"calib_width": width, "kernel_width": KERNEL, "crop": 0, "show_pbar": False}
    maps = np.zeros_like(kspace_DCHW)
    maps[:, 0] = 1  # of slices without signal
    for kspace_CHW, target in zip(kspace_DCHW, maps, strict=True):
        if kspace_CHW.any():
            estimate = EspiritCalib(kspace_CHW, **options).run()  # NaN where the first coil's is zero: sigpy divides by it
            target[:] = np.where(np.isfinite(estimate).all(0), estimate, target)
    return maps


def low_resolution_sensitivities(kspace_DCHW: NDArray[np.complex64], lines: int = SMOOTH_LINES) -> NDArray[np.complex64]:
    """Return the coil images of the lowest ``lines`` frequencies of each axis over their root sum of squares, (D, C, H, W)."""
    rows, columns = kspace_DCHW.shape[-2:]
    low = np.zeros_like(kspace_DCHW)
    center = tuple(slice(max(n // 2 - lines // 2, 0), n // 2 + lines // 2) for n in (rows, columns))
    low[..., center[0], center[1]] = kspace_DCHW[..., center[0], center[1]]
    smooth = ifft2c_numpy(low)
    root = np.sqrt((np.abs(smooth) ** 2).sum(axis=1, keepdims=True))
    return np.asarray(smooth / np.maximum(root, np.finfo(np.float32).tiny), dtype=np.complex64)
