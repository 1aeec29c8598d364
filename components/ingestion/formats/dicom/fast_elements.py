"""Elements of a DICOM data set, converted from their bytes here where they are plain, by the library where they are not.

Converting its header, an object for each value, is a third of what it takes the library to read a slice; and the slices of a series
say nearly the same.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag

Vector = tuple[float, ...]


@cache
def _tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _bytes(header: Dataset, keyword: str) -> tuple[bytes, bool] | None:
    """An element that the library has not converted yet: its bytes, and whether they are little endian."""
    element = header.get_item(_tag(keyword))
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        return element.value, element.is_little_endian
    return None


@lru_cache(4096)
def _text_in(value: bytes) -> str:
    return value.decode("ascii", "replace").strip(" \0")


@lru_cache(4096)
def _numbers_in(value: bytes) -> Vector:
    return tuple(float(part) for part in _text_in(value).split("\\"))


def numbers(header: Dataset, keyword: str) -> Vector:
    """The values of a decimal string (DS).

    Raises:
        KeyError, TypeError, ValueError: there is none, or it is no numbers.
    """
    raw = _bytes(header, keyword)
    if raw is not None:
        return _numbers_in(raw[0])
    value = header[keyword].value
    return tuple(float(one) for one in (value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]))


def number(header: Dataset, keyword: str) -> float | None:
    """A single decimal or integer string (DS, IS); None where it is absent, empty or no number."""
    try:
        found = numbers(header, keyword)
    except (KeyError, TypeError, ValueError):
        return None
    return found[0] if len(found) == 1 else None


def text(header: Dataset, keyword: str) -> str:
    """The characters of a string element, several values parted by backslashes; "" where it is absent or empty."""
    raw = _bytes(header, keyword)
    if raw is not None:
        return _text_in(raw[0])
    value: Any = header.get(keyword)
    if value is None:
        return ""
    return "\\".join(map(str, value)) if hasattr(value, "__iter__") and not isinstance(value, str) else str(value)


def content(header: Dataset, keyword: str) -> bytes:
    """The bytes of a binary element (OB, OW); b"" where it is absent."""
    raw = _bytes(header, keyword)
    return raw[0] if raw is not None else bytes(header.get(keyword) or b"")


def short(header: Dataset, keyword: str) -> int | None:
    """An unsigned 16-bit number (US); None where it is absent or empty."""
    raw = _bytes(header, keyword)
    if raw is not None and len(raw[0]) == 2:
        return int.from_bytes(raw[0], "little" if raw[1] else "big")
    value = header.get(keyword)
    return None if value in (None, "") else int(value)
