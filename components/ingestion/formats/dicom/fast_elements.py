"""Elements of a DICOM data set, converted here from their raw bytes where that is simple, by pydicom otherwise.

Converting the header, one object for each value, takes a third of the time in which pydicom reads a slice; and the slices of a
series have nearly equal headers, so that conversions are cached. Finding the elements takes another third: files of elements with
defined lengths in explicit little endian, as ingestion writes them, are split here.
"""

from __future__ import annotations

from functools import cache, lru_cache
from struct import Struct
from typing import Any

from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32

Vector = tuple[float, ...]
MAX_CACHED_VALUES = 4096
_unpack_element, _unpack_length = Struct("<HH2sH").unpack_from, Struct("<I").unpack_from
_VRS = {vr.encode(): (str(vr), vr in EXPLICIT_VR_LENGTH_32) for vr in EXPLICIT_VR_LENGTH_16 | EXPLICIT_VR_LENGTH_32}
"""VR as stored -> its name, and whether its length has 32 bits (PS3.5 7.1.2)."""
_EMPTY: dict[str, Any] = {vr: empty_value_for_VR(vr, raw=True) for vr, _ in _VRS.values()}
_LEFT_TO_PYDICOM = frozenset((0x00080005, 0xFFFEE00D))
"""Specific Character Set, and the end of an item."""
_base_tag = lru_cache(MAX_CACHED_VALUES)(BaseTag)


def read_elements(file: bytes, place: int) -> Dataset | None:
    """Return the data set in explicit little endian that begins at a place of a file, as :func:`pydicom.filereader.read_dataset`
    does; None where pydicom has to read it: undefined lengths, an unknown VR, a character set, or an end within an element.
    """
    elements: dict[BaseTag, DataElement | RawDataElement] = {}
    end = len(file)
    while place + 8 <= end:
        group, number, code, length = _unpack_element(file, place)
        place += 8
        if code not in _VRS:
            return None
        vr, is_long = _VRS[code]
        if is_long:
            if place + 4 > end:
                return None
            (length,) = _unpack_length(file, place)
            place += 4
        stop, tag = place + length, _base_tag(group << 16 | number)
        if stop > end or tag in _LEFT_TO_PYDICOM:
            return None
        value = file[place:stop] if length else _EMPTY[vr]
        elements[tag] = RawDataElement(tag, vr, length, value, place, False, True)
        place = stop
    if place != end:
        return None
    dataset = Dataset(elements)
    dataset.set_original_encoding(False, True, default_encoding)
    return dataset


def converted(header: Dataset, keyword: str) -> Any:
    """Return a value as pydicom converts it; None where it is absent, which is found without a search of the dictionary."""
    return None if is_absent(header, keyword) else header.get(keyword)


def is_absent(header: Dataset, keyword: str) -> bool:
    """Return whether a data set lacks an element."""
    return _tag(keyword) not in header


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


def optional_numbers(header: Dataset, keyword: str) -> Vector:
    """Return the values of a decimal string (DS); () where it is absent or empty.

    Raises:
        ValueError: it contains no numbers.
    """
    return numbers(header, keyword) if text(header, keyword) else ()


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
