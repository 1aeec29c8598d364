"""Pixel padding: stored values that stand for "no pixel here" (PS3.3 C.7.5.1.1.2).

Pixel Padding Value (0028,0120), or the range from it to Pixel Padding Range Limit (0028,0121), marks what lies outside of the image
(a circular field of view, the rim of a corrected distortion). Such a value is often the lowest or the highest that can be stored,
so that it would stretch or invert the scale of intensities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.tag import Tag

from components.ingestion.formats.dicom.fast_elements import converted, is_absent, short
from components.ingestion.formats.dicom.pixels import decode_words, reduce_to_stored_bits

PADDED = "pixels that the header marks as padding (Pixel Padding Value, 0028,0120): they have no signal, and are read as background"
UNCLEAR_PADDING = "pixels with one of several values of Pixel Padding Value (0028,0120), which must be one: they are read as signal"
_VALUE, _LIMIT = "PixelPaddingValue", "PixelPaddingRangeLimit"
_WORD_BITS = 16
"""Bits of US and SS."""
Mask = NDArray[np.bool_]


class Padding(NamedTuple):
    """Padding of a plane or of several.

    Attributes:
        mask: which pixels are padding; None = none.
        is_unclear: whether pixels have a value of an element that cannot be read as one number, and is ignored.
    """

    mask: Mask | None = None
    is_unclear: bool = False


def padding_range(header: Dataset) -> tuple[int, int] | None:
    """Return the lowest and the highest stored value that are padding; None where the header marks none.

    The elements are US or SS, as Pixel Representation says; some writers use the other one. Ends that the stored bits have no room
    for mark words in which other bits are set, too; stored values lack these bits, and so do the ends that are returned.

    Args:
        header: with pixels, unless :func:`fit_padding` has been applied.
    """
    ends = _stated_range(header)
    if ends is None or _fits(ends, header):
        return ends
    stored, allocated = short(header, "BitsStored") or 0, short(header, "BitsAllocated") or 0
    if short(header, "HighBit") != stored - 1 or allocated != _WORD_BITS:
        return None  # other bits at the low end of a word, or a damaged header
    words = decode_words(header)
    marked = reduce_to_stored_bits(words[(words >= ends[0]) & (words <= ends[1])], header)
    return (int(marked.min()), int(marked.max())) if marked.size else None


def _stated_range(header: Dataset) -> tuple[int, int] | None:
    """Return the lowest and the highest value that a header states for padding; None where it states none."""
    value, limit = _single(header, _VALUE), _single(header, _LIMIT)
    if value is None:  # the limit has no meaning by itself
        return None
    is_signed = bool(short(header, "PixelRepresentation"))
    ends = [_as_16_bits(end, is_signed) for end in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _fits(ends: tuple[int, int], header: Dataset) -> bool:
    """Return whether the stored bits have room for the ends of a range."""
    bits = short(header, "BitsStored") or _WORD_BITS
    lowest = -(1 << bits - 1) if short(header, "PixelRepresentation") else 0
    return bits >= _WORD_BITS or (lowest <= ends[0] and ends[1] < lowest + (1 << bits))


def _single(header: Dataset, keyword: str) -> int | None:
    """Return the number of an element; None where it is absent, or cannot be read as one number."""
    values = _numbers(header, keyword)
    return values[0] if len(values) == 1 else None


def _numbers(header: Dataset, keyword: str) -> tuple[int, ...]:
    """Return the whole numbers of an element, of whatever type its header declares it; () where it has none, or other values."""
    if is_absent(header, keyword):
        return ()
    try:
        value = short(header, keyword)
        return () if value is None else (value,)
    except (TypeError, ValueError):
        pass
    try:
        value = converted(header, keyword)
        if isinstance(value, bytes):  # of no or of another type: words, as the standard defines
            return tuple(np.frombuffer(value, "<u2").tolist())
        return tuple(int(one) for one in value)
    except Exception:  # an element of any other form; several types
        return ()


def _as_16_bits(value: int, is_signed: bool) -> int:
    unsigned = value & 0xFFFF
    return unsigned - 0x10000 if is_signed and unsigned > 0x7FFF else unsigned


def find_padding(stored: NDArray[Any], header: Dataset) -> Padding:
    """Return which stored values ([frames,] rows, columns) are padding; for the header, see :func:`padding_range`."""
    marked = padding_range(header)
    if marked is None:
        return Padding(is_unclear=_is_unclear(stored, header))
    mask = (stored >= marked[0]) & (stored <= marked[1])
    return Padding(mask if mask.any() else None)


def _is_unclear(stored: NDArray[Any], header: Dataset) -> bool:
    is_signed = bool(short(header, "PixelRepresentation"))
    several = [_as_16_bits(value, is_signed) for value in _numbers(header, _VALUE)]
    return len(several) > 1 and bool(np.isin(stored, several).any())


def has_fitting_padding(header: Dataset) -> bool:
    """Return whether the stored bits have room for the padding that a header states, if it states any."""
    ends = _stated_range(header)
    return ends is None or _fits(ends, header)


def fit_padding(dataset: Dataset) -> None:
    """State padding that the stored bits have no room for as the values that its pixels have in these bits."""
    if has_fitting_padding(dataset):
        return
    ends = padding_range(dataset)
    vr = "SS" if short(dataset, "PixelRepresentation") else "US"
    for keyword, end in zip((_VALUE, _LIMIT), ends or (None, None), strict=True):
        dataset.pop(Tag(keyword), None)
        if end is not None:
            dataset.add_new(Tag(keyword), vr, end)


def blank_padding(planes: Sequence[NDArray[Any]], paddings: Sequence[Padding]) -> tuple[str, ...]:
    """Replace the padding of the planes of a volume in place; return what the user should know about it.

    Padding becomes 0, the value of no signal, or the lowest of the other values where that is negative: background is never
    brighter than tissue. Padding that has this value already is not mentioned.

    Args:
        planes: (rows, columns) each, rescaled.
        paddings: of each plane.
    """
    notes = (UNCLEAR_PADDING,) if any(padding.is_unclear for padding in paddings) else ()
    masks = [padding.mask for padding in paddings]
    if all(mask is None for mask in masks):
        return notes
    others = [plane if mask is None else plane[~mask] for plane, mask in zip(planes, masks, strict=True)]
    background = min((float(values.min()) for values in others if values.size), default=0.0)
    background = min(background, 0.0)
    is_changed = False
    for plane, mask in zip(planes, masks, strict=True):
        if mask is not None:
            is_changed = is_changed or bool((plane[mask] != background).any())
            plane[mask] = background
    return (*notes, PADDED) if is_changed else notes
