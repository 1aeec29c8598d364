"""The measurements of samples as tensors: one function for training, evaluation and figures.

Shape letters: B samples, C coils, D slices, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.tasks.base import Target
from model_core.mri_physics.sense import KSpaceMeasurement


def stack_measurements(targets: Sequence[Target]) -> KSpaceMeasurement:
    """Return the measurements of slices (as D = 1) or of volumes of one depth.

    If any has several coils, all are padded to the same number of coils, with sensitivities and k-space of zero; one coil of
    uniform sensitivity has the map 1.
    """
    sampling_BDHW = _stack([_with_depth(target.sampling, 2) for target in targets])
    if all(target.coil_maps is None for target in targets):
        kspace_BDHW = _stack([_with_depth(target.kspace, 2) for target in targets])
        return KSpaceMeasurement(kspace_BDHW[:, None], sampling_BDHW)
    coils = max(target.kspace.shape[-3] for target in targets if target.coil_maps is not None)
    kspace_BCDHW, maps_BCDHW = (
        _stack([_coils_first(array, target, coils) for array, target in zip(arrays, targets, strict=True)])
        for arrays in ([target.kspace for target in targets], [_maps(target) for target in targets])
    )
    return KSpaceMeasurement(kspace_BCDHW, sampling_BDHW, maps_BCDHW)


def zero_filled_images(targets: Sequence[Target]) -> list[NDArray[np.float32]]:
    """Return the zero-filled magnitude image (H, W) of each slice."""
    return [np.asarray(stack_measurements([target]).adjoint().abs()[0, 0].numpy(), np.float32) for target in targets]


def _maps(target: Target) -> NDArray[np.complex64]:
    return np.ones_like(target.kspace) if target.coil_maps is None else target.coil_maps


def _coils_first(array: NDArray[np.complex64], target: Target, coils: int) -> NDArray[np.complex64]:
    """Return k-space or sensitivities of a target as (C, D, H, W), padded with zeros."""
    array = array[..., None, :, :] if target.coil_maps is None else array
    array_CDHW = np.moveaxis(_with_depth(array, 3), -3, 0)
    return np.pad(array_CDHW, ((0, coils - len(array_CDHW)), (0, 0), (0, 0), (0, 0)))


def _with_depth(array: NDArray[np.generic], axes_of_slice: int) -> NDArray[np.generic]:
    """Return an array with the axis of slices in front."""
    return array[None] if array.ndim == axes_of_slice else array


def _stack(arrays: Sequence[NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
