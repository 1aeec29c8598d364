"""Comparison of ingested volumes with their sources."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.ingestion.volume import Volume


def source_indices(volume: Volume, affine: NDArray[np.float64]) -> tuple[NDArray[Any], ...]:
    """Return the index (x, y, z) in a source at which each voxel of a volume, in C order, lies by both affines."""
    to_source = np.linalg.inv(affine) @ volume.affine
    np.testing.assert_allclose(to_source, np.rint(to_source), atol=2e-4)
    indices = np.indices(volume.voxels.shape).reshape(3, -1)
    x, y, z = np.rint(to_source[:3, :3] @ indices + to_source[:3, 3:]).astype(int)
    return x, y, z


def assert_same(volume: Volume, values: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Require that each voxel of a volume is that of the source (x, y, z) at the same position in space, in single precision."""
    assert volume.voxels.size == values.size
    expected = np.where(np.isfinite(values), values, 0).astype(np.float32)
    np.testing.assert_array_equal(volume.voxels.ravel(), expected[source_indices(volume, affine)])
