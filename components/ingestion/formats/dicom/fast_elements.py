"""Elements of a DICOM data set, converted here from their raw bytes where that is simple, by pydicom otherwise.

Converting the header, one object for each value, takes a third of the time in which pydicom reads a slice; and the slices of a
series have nearly equal headers, so that conversions are cached.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

Vector = tuple[float, ...]
MAX_CACHED_VALUES = 4096


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _raw_bytes(header: Dataset, keyword: str) -> tuple[bytes, bool] | None:
    """Return the bytes of an element that pydicom has not converted yet, and whether they are little endian; else None."""
    element = header.get_item(_tag(keyword))
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        return element.value, element.is_little_endian
    return None


@lru_cache(MAX_CACHED_VALUES)
def _decode_text(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


@lru_cache(MAX_CACHED_VALUES)
def _parse_numbers(value: bytes) -> Vector:
    return tuple(float(part) for part in _decode_text(value).split("\\"))


def numbers(header: Dataset, keyword: str) -> Vector:
    """Return the values of a decimal string (DS).

    Raises:
        KeyError, TypeError, ValueError: the element is absent, or contains no numbers.
    """
    raw = _raw_bytes(header, keyword)
    if raw is not None:
        return _parse_numbers(raw[0])
    value = header[keyword].value
    return tuple(float(item) for item in (value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]))


def number(header: Dataset, keyword: str) -> float | None:
    """Return a single decimal or integer string (DS, IS); None where it is absent, empty, multiple or no number."""
    try:
        values = numbers(header, keyword)
    except (KeyError, TypeError, ValueError):
        return None
    return values[0] if len(values) == 1 else None


def text(header: Dataset, keyword: str) -> str:
    """Return the characters of a string element, several values separated by backslashes; "" where it is absent or empty."""
    raw = _raw_bytes(header, keyword)
    if raw is not None:
        return _decode_text(raw[0])
    value: Any = header.get(keyword)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if hasattr(value, "__iter__") and not isinstance(value, str) else str(value)


def content(header: Dataset, keyword: str) -> bytes:
    """Return the bytes of a binary element (OB, OW); b"" where it is absent."""
    raw = _raw_bytes(header, keyword)
    return raw[0] if raw is not None else bytes(header.get(keyword) or b"")


def short(header: Dataset, keyword: str) -> int | None:
    """Return an unsigned 16-bit number (US); None where it is absent or empty."""
    raw = _raw_bytes(header, keyword)
    if raw is not None and len(raw[0]) == 2:
        return int.from_bytes(raw[0], "little" if raw[1] else "big")
    value = header.get(keyword)
    return None if value in (None, "") else int(value)
