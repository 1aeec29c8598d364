"""Checks that every format applies to the voxels and files that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput


def remove_nonfinite(voxels: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Replace NaN and infinity, which some exports have outside of the head, by zero.

    Raises:
        BadInput: no finite voxel.
    """
    finite = np.isfinite(voxels)
    if not finite.any():
        raise BadInput("no finite voxel", where=name, remedy="export the series again")
    return np.where(finite, voxels, 0).astype(np.float32)


def require_single(count: int, noun: str, path: Path) -> None:
    """Require that a user's path is one volume.

    Raises:
        BadInput: ``count`` is not 1.
    """
    if count != 1:
        raise BadInput(
            f"{count} {noun} where one is expected", where=str(path), remedy="give one, or ingest the folder, which splits them"
        )
