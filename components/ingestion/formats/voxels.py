"""Checks that every format applies to the voxels and files that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.quarantine import UnsupportedInput


def require_signal(values: NDArray[Any]) -> None:
    """Require voxels that differ, in the range of single precision, in which volumes are read.

    Raises:
        BadInput: no finite voxel, or no two finite voxels that differ.
        UnsupportedInput: finite values beyond single precision.
    """
    magnitude = np.abs(values) if np.iscomplexobj(values) else values
    lowest, highest = magnitude.min(), magnitude.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        finite = magnitude[np.isfinite(magnitude)]
        if not finite.size:
            raise BadInput(
                "no finite voxel: every one is NaN or infinite", remedy="correct the step that created it, and give its result"
            )
        lowest, highest = finite.min(), finite.max()
    require_signal_range(float(lowest), float(highest))


def require_signal_range(lowest: float, highest: float) -> None:
    """Require that the finite voxels of an image differ, and fit into single precision.

    Raises:
        BadInput, UnsupportedInput: see :func:`require_signal`.
    """
    if max(abs(lowest), abs(highest)) > float(np.finfo(np.float32).max):
        raise UnsupportedInput("unsupported", "values beyond single precision (3.4e38)", remedy="divide the values by a constant")
    if lowest == highest:
        raise BadInput("no signal: every voxel has the same value", remedy="give an image with signal, or leave the file out")


def remove_nonfinite(voxels: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return voxels in single precision; NaN and infinity, which some exports have outside of the head, become zero.

    Raises:
        BadInput: no finite voxel.
        UnsupportedInput: finite values beyond single precision.
    """
    finite = np.isfinite(voxels)
    if not finite.any():
        raise BadInput("no finite voxel", where=name, remedy="export the series again")
    with np.errstate(over="ignore"):
        single = np.where(finite, voxels, 0).astype(np.float32)
    if not np.isfinite(single).all():
        raise UnsupportedInput(
            "unsupported", "values beyond single precision (3.4e38)", where=name, remedy="divide the values by a constant"
        )
    return single


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
