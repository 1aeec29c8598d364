"""Checks that every format applies to the voxels and files that it reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_MIN_UNIT_STEPS = 0.9
"""Fraction of the steps between voxels that are 1 in a smooth image; adjacent labels have any numbers."""
_GRAY = (0.2, 0.8)
"""Fractions of the voxels other than background below the highest value, in an image that is cut off at that value. A mask with
smooth edges has less, a map of many labels more.
"""
_MAX_ENLARGEMENT = 4
MAYBE_LABELS = "regions of equal whole numbers: a smooth or saturated image, or a label map, which is no image"


def require_image(voxels: NDArray[Any], where: str, is_magnitude: bool) -> tuple[str, ...]:
    """Require that a user's volume is an image by its values, and return what the user should know about them.

    Args:
        voxels: (slices, rows, columns).
        where: shown in the error message.
        is_magnitude: whether its format declares an MR magnitude (DICOM, k-space), which is no mask however few values it has.

    Raises:
        BadInput: a constant, or a mask or label map.
    """
    try:
        require_signal(voxels)
        notes = () if is_magnitude else require_gray_values(voxels, "give the image that it was drawn on")
    except BadInput as error:
        raise BadInput(error.what, where=where, remedy=error.remedy) from None
    return (*notes, *notes_on_values(voxels))


def require_gray_values(values: NDArray[Any], remedy: str = _DECLARE_MASK) -> tuple[str, ...]:
    """Require more values than a label map has: an image that only takes a few values, or whole numbers in plateaus, is none.

    Args:
        values: (x, y, z[, channels]).
        remedy: what the user can do about a label map.

    Returns:
        What the user should know about plateaus that an image may have, too.

    Raises:
        UnsupportedInput: at most a dozen different values, rounding errors aside, or many whole numbers that form regions.
    """
    if values.dtype.kind == "c":
        return ()
    step = max(1, values.size // _SAMPLE)
    drawn = values.ravel(order="K")[::step]
    sample = _distinct(drawn)
    if len(sample) <= _FEW_VALUES:
        found = _distinct(values)
        if len(found) <= 1:
            return ()
        if len(found) <= _FEW_VALUES:
            _refuse_mask(f"{len(found)} different values", remedy)
    if not bool((sample == np.rint(sample)).all()):
        return ()
    distinct, counts = np.unique(drawn, return_counts=True)
    background = distinct[counts.argmax()]
    if not _has_plateaus(values, (background,)) or not _has_plateaus(pixels := _without_enlargement(values), (background,)):
        return ()
    if not (_is_smooth(pixels, background) or _is_saturated(pixels, background)):
        _refuse_mask("regions of equal whole numbers", remedy)
    return (MAYBE_LABELS,)


def _without_enlargement(values: NDArray[Any]) -> NDArray[Any]:
    """Return values without the copies of an enlargement by nearest neighbor, by one small factor along all axes."""
    sides = [axis for axis in range(min(values.ndim, 3)) if values.shape[axis] > 1]
    factors = {_enlargement(np.moveaxis(values, axis, 0)) for axis in sides}
    factor = factors.pop() if len(factors) == 1 else 1
    if not 1 < factor <= _MAX_ENLARGEMENT:
        return values
    return values[tuple(slice(None, None, factor if axis in sides else 1) for axis in range(values.ndim))]


def _enlargement(planes: NDArray[Any]) -> int:
    """Return the largest factor at whose multiples alone planes differ from the one before; 0 where all are equal."""
    changes = [place for place in range(1, len(planes)) if not np.array_equal(planes[place], planes[place - 1])]
    return math.gcd(*changes)


def _has_plateaus(values: NDArray[Any], left_out: Sequence[Any]) -> bool:
    """Return whether most voxels equal the next one, along the axis of the lowest fraction.

    Args:
        left_out: values that are not counted.
    """
    pairs = [_neighbors(values, axis, left_out) for axis in range(min(values.ndim, 3))]
    return min((float((first == second).mean()) for first, second in pairs if first.size), default=1.0) > _MAX_EQUAL_NEIGHBORS


def _is_smooth(values: NDArray[Any], background: Any) -> bool:
    """Return whether nearly all steps between neighbors are 1, along the axis of the lowest fraction."""
    lowest = 1.0
    for axis in range(min(values.ndim, 3)):
        first, second = _neighbors(values, axis, (background,))
        steps = np.abs(first.astype(np.float64) - second)[(first != second) & (second != background)]
        lowest = min(lowest, float((steps <= 1).mean()) if steps.size else 1.0)
    return lowest >= _MIN_UNIT_STEPS


def _is_saturated(values: NDArray[Any], background: Any) -> bool:
    """Return whether many voxels are cut off at the highest value, and the others have no plateaus."""
    others = values[values != background]
    highest = others.max(initial=background)
    return bool(_GRAY[0] <= (others != highest).mean() <= _GRAY[1]) and not _has_plateaus(values, (background, highest))


def _neighbors(values: NDArray[Any], axis: int, left_out: Sequence[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the voxels that have none of some values, and the next ones along an axis."""
    first, second = (np.moveaxis(values, axis, 0)[places] for places in (slice(None, -1), slice(1, None)))
    inside = ~np.isin(first, left_out)
    return first[inside], second[inside]


def _refuse_mask(why: str, remedy: str) -> NoReturn:
    raise UnsupportedInput("not magnitude", f"a mask or label map by its values: {why}", remedy=remedy)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """Return the different finite values; those near whole numbers are rounded to them."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    whole = np.rint(finite) if finite.dtype.kind == "f" else finite
    is_whole = finite.dtype.kind != "f" or float(np.abs(finite - whole).max(initial=0)) <= _ROUNDING
    return np.unique(whole if is_whole and len(np.unique(whole)) > 1 else finite)
