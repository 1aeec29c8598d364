"""Checks that every format applies to the voxels and files that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.quarantine import UnsupportedInput


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


_FEW_VALUES, _SAMPLE = 12, 8192


def require_gray_values(values: NDArray[Any]) -> None:
    """Require more values than a label map has: an image that only takes a few whole numbers is none.

    Raises:
        UnsupportedInput: at most a dozen different whole numbers, the smallest of which is 0.
    """
    if values.size < _SAMPLE or values.dtype.kind == "c":
        sample = values.ravel()
    else:
        sample = values.ravel(order="K")[:: values.size // _SAMPLE]
    if len(np.unique(sample)) > _FEW_VALUES:
        return
    found = np.unique(values)
    if 1 < len(found) <= _FEW_VALUES and found[0] == 0 and bool((found == np.rint(found)).all()):
        raise UnsupportedInput(
            "not magnitude",
            f"a mask or label map by its values: {len(found)} whole numbers",
            remedy="declare it in layout.labels, or exclude it with layout.ignored",
        )
