"""Pixel padding: stored values that stand for "no pixel here" (PS3.3 C.7.5.1.1.2).

Pixel Padding Value (0028,0120), or the range from it to Pixel Padding Range Limit (0028,0121), marks what lies outside of the image
(a circular field of view, the rim of a corrected distortion). Such a value is often the lowest or the highest that can be stored,
so that it would stretch or invert the scale of intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.formats.dicom.fast_elements import short

PADDED = "pixels that the header marks as padding (Pixel Padding Value, 0028,0120): they have no signal, and are read as background"
Mask = NDArray[np.bool_]


def padding_range(header: Dataset) -> tuple[int, int] | None:
    """Return the lowest and the highest stored value that are padding; None where the header marks none.

    The elements are US or SS, as Pixel Representation says; some writers use the other one.
    """
    value, limit = (short(header, f"PixelPadding{noun}") for noun in ("Value", "RangeLimit"))
    if value is None:  # the limit has no meaning by itself
        return None
    is_signed = bool(short(header, "PixelRepresentation"))
    ends = [_as_16_bits(end, is_signed) for end in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _as_16_bits(value: int, is_signed: bool) -> int:
    unsigned = value & 0xFFFF
    return unsigned - 0x10000 if is_signed and unsigned > 0x7FFF else unsigned


def find_padding(stored: NDArray[Any], header: Dataset) -> Mask | None:
    """Return which stored values ([frames,] rows, columns) are padding; None if none is."""
    marked = padding_range(header)
    if marked is None:
        return None
    mask = (stored >= marked[0]) & (stored <= marked[1])
    return mask if mask.any() else None


def blank_padding(planes: Sequence[NDArray[Any]], masks: Sequence[Mask | None]) -> bool:
    """Replace the padding of the planes of a volume in place; return whether a value changed.

    Padding becomes 0, the value of no signal, or the lowest of the other values where that is negative: background is never
    brighter than tissue.

    Args:
        planes: (rows, columns) each, rescaled.
        masks: what is padding; None = nothing.
    """
    if all(mask is None for mask in masks):
        return False
    others = [plane if mask is None else plane[~mask] for plane, mask in zip(planes, masks, strict=True)]
    background = min((float(values.min()) for values in others if values.size), default=0.0)
    background = min(background, 0.0)
    is_changed = False
    for plane, mask in zip(planes, masks, strict=True):
        if mask is not None:
            is_changed = is_changed or bool((plane[mask] != background).any())
            plane[mask] = background
    return is_changed
