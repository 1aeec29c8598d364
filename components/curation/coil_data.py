"""k-space of several coils: resample to the grid of the corpus, compress to virtual coils, estimate sensitivities, undersample.

Coil images are resampled like images (:mod:`components.curation.resampling`) and transformed again. Frequencies that the scanner
did not measure (partial Fourier, asymmetric echo) are zero in the store, and count as not measured whatever the sampling mask is.

Shape letters: S samples, D slices, C coils, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.curation.intensity import compute_intensity_scale
from components.curation.resampling import PlaneGrid, resample
from components.curation.store import STORED, ArrayName, VolumeStore
from components.ingestion.volume import Band, Volume
from model_core.mri_physics.coils import compress_coils, estimate_sensitivities
from model_core.mri_physics.fourier import fft2c_numpy, ifft2c_numpy
from model_core.mri_physics.sampling_masks import undersample

AT_ONCE = 8
"""Slices of several coils that are reconstructed at once."""
CoilReference = Literal["rss", "espirit"]
"""Image that reconstruction is trained towards: root sum of squares of all coils, or combination with ESPIRiT sensitivities."""


def resample_coils(volume: Volume, grid: PlaneGrid, reference: CoilReference) -> tuple[dict[ArrayName, NDArray[Any]], float]:
    """Return the arrays of a volume with several coils in the types of the store (coils complex64), and the intensity scale.

    The root sum of squares is that of all coils of the source; ``coils`` are at most
    :data:`~model_core.mri_physics.coils.VIRTUAL_COILS` virtual ones.
    """
    assert volume.kspace is not None
    scale = compute_intensity_scale(volume.voxels)
    slices, coils = volume.kspace.shape[:2]
    is_acquired_HW = acquired_frequencies(volume, grid)
    kspace = np.empty((slices, coils, grid.size, grid.size), dtype=np.complex64)
    for index, kspace_CHW in enumerate(volume.kspace):  # coils take the place of slices: each is a plane to be resampled
        kspace[index] = fft2c_numpy(resample(ifft2c_numpy(kspace_CHW), grid)) * is_acquired_HW / np.float32(scale)
    virtual = compress_coils(kspace)
    maps = estimate_sensitivities(virtual)
    if reference == "rss":
        image = np.stack([np.sqrt((np.abs(ifft2c_numpy(kspace_CHW)) ** 2).sum(0)) for kspace_CHW in kspace])
    else:
        image = np.stack([np.abs((own.conj() * ifft2c_numpy(k)).sum(0)) for own, k in zip(maps, virtual, strict=True)])
    arrays: dict[ArrayName, NDArray[Any]] = {"coils": virtual, "sensitivities": maps}
    arrays["voxels"] = np.ascontiguousarray(image, STORED["voxels"])
    if volume.labels is not None:
        arrays["labels"] = np.ascontiguousarray(resample(volume.labels, grid, nearest=True), STORED["labels"])
    return arrays, scale


def acquired_frequencies(volume: Volume, grid: PlaneGrid) -> NDArray[np.bool_]:
    """Return the frequencies (size, size) of the curated grid that the scanner measured."""
    if volume.acquired is None:
        return np.ones((grid.size, grid.size), dtype=np.bool_)
    rows, columns = (
        _is_acquired(band, length, scale, grid.size)
        for band, length, scale in zip(volume.acquired, volume.voxels.shape[1:], grid.scale, strict=True)
    )
    return rows[:, None] & columns


def _is_acquired(band: Band, length: int, scale: float, size: int) -> NDArray[np.bool_]:
    """Return the frequencies (size,) of a curated axis within a band of the source's axis of ``length`` pixels.

    A point of the source's k-space stands for half a step on either side of it.
    """
    frequency = (np.arange(size) - size // 2) / size / scale
    half = 0.5 / length
    return (frequency >= band[0] - half) & (frequency < band[1] + half)


@dataclass(frozen=True)
class Undersampled:
    """Undersampled slices of a volume, (..., H, W).

    Attributes:
        image: float32, magnitude of the image that reconstruction starts from (:meth:`KSpaceMeasurement.first_image`).
        kspace: complex64, zeros where not sampled; of several coils (..., C, H, W).
        sampling: bool, True = sampled.
        coil_maps: complex64 (..., C, H, W); None = one coil.
    """

    image: NDArray[np.float32]
    kspace: NDArray[np.complex64]
    sampling: NDArray[np.bool_]
    coil_maps: NDArray[np.complex64] | None = None


def read_undersampled(
    store: VolumeStore, volume_id: str, mask_W: NDArray[np.bool_], index: int | NDArray[np.integer[Any]]
) -> Undersampled:
    """Read a slice, or some slices (D, ...), and keep the columns of a mask, the same for every coil.

    Raises:
        BadInput: the volume has no k-space, or a slice is damaged.
    """

    def read(array: ArrayName) -> NDArray[Any]:
        if isinstance(index, int):
            return store.read(volume_id, array, index)
        return np.stack([store.read(volume_id, array, int(one)) for one in index])

    if not store.has(volume_id, "coils"):
        zero_filled, kspace = undersample(read("kspace"), mask_W)
        return Undersampled(zero_filled, kspace, np.broadcast_to(mask_W, zero_filled.shape))
    coils, maps = read("coils"), read("sensitivities")
    sampling = (coils != 0).any(-3) & mask_W
    kspace = np.where(mask_W, coils, 0).astype(np.complex64)
    return Undersampled(_combine_coils(kspace, sampling, maps), kspace, sampling, maps)


def _combine_coils(kspace: NDArray[np.complex64], sampling: NDArray[np.bool_], maps: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the first image (..., H, W) of the k-space of several coils (..., C, H, W)."""
    import torch

    from model_core.mri_physics.sense import KSpaceMeasurement

    coils, height, width = kspace.shape[-3:]
    kspace_SC1HW, maps_SC1HW = (torch.from_numpy(array.reshape(-1, coils, 1, height, width)) for array in (kspace, maps))
    sampling_S1HW = torch.from_numpy(sampling.reshape(-1, 1, height, width))
    first = [
        KSpaceMeasurement(*(values[start : start + AT_ONCE] for values in (kspace_SC1HW, sampling_S1HW, maps_SC1HW))).first_image()
        for start in range(0, len(sampling_S1HW), AT_ONCE)
    ]
    return np.asarray(torch.cat(first).abs().numpy().reshape(sampling.shape), np.float32)
