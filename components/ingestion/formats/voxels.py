"""Checks that every format applies to the voxels and files that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion.quarantine import UnsupportedInput

NEGATIVE = "negative values, which no magnitude has: a phase, a difference, or standardized intensities"
FRACTIONS = "values from 0 to 1: normalized intensities, or a probability map, which is no image"
MAX_NEGATIVE = 0.05
"""Fraction of negative voxels that is not mentioned: resampling makes a few."""
MIN_STEPS = 100
"""Different values in single precision that the range of an image must have room for."""


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
    """Require that the finite voxels of an image differ, and fit into single precision, in which they still differ.

    Raises:
        BadInput, UnsupportedInput: see :func:`require_signal`.
    """
    if max(abs(lowest), abs(highest)) > float(np.finfo(np.float32).max):
        raise UnsupportedInput("unsupported", "values beyond single precision (3.4e38)", remedy="divide the values by a constant")
    if lowest == highest:
        raise BadInput("no signal: every voxel has the same value", remedy="give an image with signal, or leave the file out")
    if highest - lowest < MIN_STEPS * float(np.spacing(np.float32(max(abs(lowest), abs(highest))))):
        raise UnsupportedInput(
            "unsupported",
            "values that single precision cannot tell apart (a large offset, or below 1e-43)",
            remedy="subtract the offset, or multiply the values by a constant",
        )


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


def notes_on_values(values: NDArray[Any]) -> tuple[str, ...]:
    """Return what the user should know about the values of an image: many are negative, or all are fractions."""
    if values.dtype.kind not in "if":
        return ()
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    if lowest < 0:
        return (NEGATIVE,) if np.count_nonzero(values < 0) > MAX_NEGATIVE * values.size else ()
    return (FRACTIONS,) if values.dtype.kind == "f" and 0.5 < highest <= 1 + _ROUNDING else ()


def require_single(count: int, noun: str, path: Path) -> None:
    """Require that a user's path is one volume.

    Raises:
        BadInput: ``count`` is not 1.
    """
    if count != 1:
        raise BadInput(
            f"{count} {noun} where one is expected", where=str(path), remedy="give one, or ingest the folder, which splits them"
        )


_DECLARE_MASK = "declare it in layout.labels, or exclude it with layout.ignored"
_FEW_VALUES, _SAMPLE, _ROUNDING = 12, 8192, 1e-3
_MAX_EQUAL_NEIGHBORS = 0.6
"""Fraction of voxels other than background that equal the next one, along each axis; that of images is far lower."""


def require_image(voxels: NDArray[Any], where: str) -> tuple[str, ...]:
    """Require that a user's volume is an image by its values, and return what the user should know about them.

    Args:
        voxels: (slices, rows, columns).
        where: shown in the error message.

    Raises:
        BadInput: a constant, or a mask or label map.
    """
    try:
        require_signal(voxels)
        require_gray_values(voxels, "give the image that it was drawn on")
    except BadInput as error:
        raise BadInput(error.what, where=where, remedy=error.remedy) from None
    return notes_on_values(voxels)


def require_gray_values(values: NDArray[Any], remedy: str = _DECLARE_MASK) -> None:
    """Require more values than a label map has: an image that only takes a few values, or whole numbers in plateaus, is none.

    Args:
        values: (x, y, z[, channels]).
        remedy: what the user can do about a label map.

    Raises:
        UnsupportedInput: at most a dozen different values, rounding errors aside, or many whole numbers that form regions.
    """
    if values.dtype.kind == "c":
        return
    step = max(1, values.size // _SAMPLE)
    drawn = values.ravel(order="K")[::step]
    sample = _distinct(drawn)
    if len(sample) <= _FEW_VALUES:
        found = _distinct(values)
        if len(found) <= 1:
            return
        if len(found) <= _FEW_VALUES:
            _refuse_mask(f"{len(found)} different values", remedy)
    distinct, counts = np.unique(drawn, return_counts=True)
    background = distinct[counts.argmax()]
    if bool((sample == np.rint(sample)).all()) and _equal_neighbors(values, background) > _MAX_EQUAL_NEIGHBORS:
        _refuse_mask("regions of equal whole numbers", remedy)


def _refuse_mask(why: str, remedy: str) -> NoReturn:
    raise UnsupportedInput("not magnitude", f"a mask or label map by its values: {why}", remedy=remedy)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Return the different finite values; those near whole numbers are rounded to them."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    whole = np.rint(finite) if finite.dtype.kind == "f" else finite
    is_whole = finite.dtype.kind != "f" or float(np.abs(finite - whole).max(initial=0)) <= _ROUNDING
    return np.unique(whole if is_whole and len(np.unique(whole)) > 1 else finite)


def _equal_neighbors(values: NDArray[Any], background: Any) -> float:
    """Return the fraction of voxels that equal the next one, among those that are not background, along the axis of the lowest."""
    lowest = 1.0
    for axis in range(min(values.ndim, 3)):
        first, second = (np.moveaxis(values, axis, 0)[places] for places in (slice(None, -1), slice(1, None)))
        inside = first != background
        if inside.any():
            lowest = min(lowest, float((first == second)[inside].mean()))
    return lowest
