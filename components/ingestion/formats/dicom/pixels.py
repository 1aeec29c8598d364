"""Pixel data of DICOM objects: fast reading of the common encodings, pydicom's decoders for the others."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.errors import BadInput
from components.ingestion.formats.dicom.fast_elements import content, is_absent, number, read_elements, short, text
from components.ingestion.formats.dicom.reading import read_object
from components.ingestion.formats.gzipped import read_decompressed
from components.ingestion.quarantine import Rejection, UnsupportedInput, rejection_of

_META_END = 144
"""Offset behind the length element of the file meta information (PS3.10 7.1)."""
_META_HEAD = b"DICM\x02\x00\x00\x00UL\x04\x00"
"""Bytes from the magic to the value of that length element."""
_EXPLICIT_SYNTAX = b"\x02\x00\x10\x00UI\x14\x00" + ExplicitVRLittleEndian.encode() + b"\0"
"""Transfer syntax element of explicit little endian."""
_FIRST_GROUP = b"\x08\0"
"""Bytes that a data set begins with: group 0008."""
_WORDS = {"<": (8, 16, 32), ">": (16, 32)}
"""Byte order -> bits allocated of pixels that are read here; big endian bytes may be swapped in words (PS3.5 A.3)."""
_SYNTAXES_READ_HERE = frozenset((ExplicitVRLittleEndian, ImplicitVRLittleEndian))
_ITEM = b"\xfe\xff\x00\xe0"
"""Item tag that encapsulated pixels begin with (PS3.5 A.4)."""
_MAX_FRAME_PIXELS, _MAX_COMPRESSION_RATIO = 2**26, 4096
"""Plausible pixels of a frame, and bytes decoded from one compressed byte; more comes from a damaged header."""
_REQUIRED = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_EXPORT_AGAIN = "export or download it again"


def read_slice(path: Path) -> Dataset:
    """Read the data set of a file with its pixels, equal to the result of :func:`pydicom.dcmread`.

    Most files are explicit little endian after a preamble. For them, only the transfer syntax is taken from the file meta
    information: pydicom parses that into a data set of its own, which takes a quarter of the time. Where its length does not lead
    to group 0008, pydicom reads the file.
    """
    return parse_slice(read_decompressed(path), path)


def parse_slice(file: bytes, path: Path) -> Dataset:
    """Return the data set of a file with its pixels, see :func:`read_slice`.

    Args:
        file: the bytes of ``path``, decompressed.
    """
    end = _META_END + int.from_bytes(file[140:_META_END], "little")
    is_plain = (
        file[128:140] == _META_HEAD and file.find(_EXPLICIT_SYNTAX, _META_END, end) > 0 and file[end : end + 2] == _FIRST_GROUP
    )
    if not is_plain:
        return read_object(path)
    dataset = read_elements(file, end)
    if dataset is None:
        stream = BytesIO(file)
        stream.seek(end)
        dataset = read_dataset(stream, is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = _explicit_meta()
    return dataset


@cache
def _explicit_meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return meta


def find_pixel_fault(path: Path) -> Rejection | None:
    """Return why the pixels of a file cannot be decoded, None where they can."""
    try:
        decode_pixels(read_object(path))
    except BadInput as error:
        return rejection_of(error)
    except Exception as error:
        return Rejection("unreadable", f"broken or unreadable pixels ({type(error).__name__})", _EXPORT_AGAIN)
    return None


def decode_pixels(dataset: Dataset) -> NDArray[Any]:
    """Return the stored values ([frames,] rows, columns) without the bits beside them (PS3.5 8.1.1), signed as the header says.

    Raises:
        BadInput: no pixels, fewer than the header claims, or compressed ones of an unknown or contradictory encoding.
        Exception: errors of the decoders.
    """
    pixels = content(dataset, "PixelData")
    if not pixels:
        if not (is_absent(dataset, "FloatPixelData") and is_absent(dataset, "DoubleFloatPixelData")):
            raise UnsupportedInput(
                "unsupported", "pixels that are floating point numbers", remedy="export whole numbers with a slope"
            )
        raise BadInput("no pixel data", remedy=_EXPORT_AGAIN)
    missing = [keyword for keyword in _REQUIRED if short(dataset, keyword) is None]
    if missing:
        raise BadInput(f"pixels without {', '.join(missing)}", remedy=_EXPORT_AGAIN)
    rows, columns, frames = short(dataset, "Rows") or 0, short(dataset, "Columns") or 0, int(number(dataset, "NumberOfFrames") or 1)
    bits = rows * columns * frames * (short(dataset, "BitsAllocated") or 0)
    syntax = _transfer_syntax(dataset)
    _check_syntax(syntax)
    if syntax is not None and not UID(syntax).is_compressed:
        if pixels.startswith(_ITEM) and len(pixels) * 8 < bits:
            raise BadInput("compressed pixels without their transfer syntax", remedy=_EXPORT_AGAIN)
        if len(pixels) * 8 < bits:
            raise BadInput("fewer pixels than the header says", remedy=_EXPORT_AGAIN)
        shape = (rows, columns) if frames == 1 else (frames, rows, columns)
        values = _read_plain_pixels(dataset, pixels, shape, ">" if syntax == ExplicitVRBigEndian else "<")
        if values is not None:
            return values
    if rows * columns > _MAX_FRAME_PIXELS or bits // 8 > len(pixels) * _MAX_COMPRESSION_RATIO:
        raise BadInput(f"a header that claims {frames} frames of {rows} x {columns}", remedy=_EXPORT_AGAIN)
    check_high_bit(dataset)
    return reduce_to_stored_bits(_decode_with_pydicom(dataset), dataset)


def _check_syntax(syntax: Any) -> None:
    """Require a transfer syntax that pydicom has a decoder for.

    Raises:
        UnsupportedInput: another one; it is named if the standard defines it.
    """
    if syntax is None or syntax in _SYNTAXES_READ_HERE:
        return
    try:
        get_decoder(UID(syntax))
    except NotImplementedError:
        name = UID(syntax).name if UID(syntax).name != syntax else "unknown"
        raise UnsupportedInput(
            "unsupported", f"pixels in a transfer syntax that is not decoded ({name})", remedy="export the image uncompressed"
        ) from None


def check_high_bit(header: Dataset) -> None:
    """Require values at the low end of their words, which pydicom's decoders assume.

    Raises:
        BadInput: a High Bit that is not Bits Stored - 1.
    """
    stored, high = short(header, "BitsStored"), short(header, "HighBit")
    if stored is not None and high is not None and high != stored - 1:
        raise BadInput(f"values of {stored} bits whose highest is bit {high}", remedy="export the image again, uncompressed")


def _decode_with_pydicom(dataset: Dataset) -> NDArray[Any]:
    try:
        return np.asarray(pixel_array(dataset, raw=True, view_only=True))
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic of the RLE decoder (Rust) is no Exception and would end the process
        raise BadInput("pixels that do not decode", remedy=_EXPORT_AGAIN) from None


def _transfer_syntax(dataset: Dataset) -> Any:
    return dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None


def _read_plain_pixels(dataset: Dataset, pixels: bytes, shape: tuple[int, ...], order: str) -> NDArray[Any] | None:
    """Return pixels that are stored as whole words of one sample each, without the bits beside the value; None for other pixels.

    Nearly every MR image is stored so; pydicom's decoder, which handles all other cases, takes as long as reading the file.

    Args:
        order: byte order, "<" or ">".
    """
    allocated, stored = short(dataset, "BitsAllocated") or 0, short(dataset, "BitsStored") or 0
    high, signed = short(dataset, "HighBit"), short(dataset, "PixelRepresentation")
    high = stored - 1 if high is None else high
    is_whole = allocated in _WORDS[order] and 1 <= stored <= high + 1 <= allocated
    if not is_whole or signed not in (0, 1) or short(dataset, "SamplesPerPixel") not in (None, 1) or not math.prod(shape):
        return None
    values = np.frombuffer(pixels, dtype=f"{order}{'i' if signed else 'u'}{allocated // 8}", count=math.prod(shape))
    highest = (1 << stored - bool(signed)) - 1
    is_clean = high == stored - 1 and (
        stored == allocated or not (values.max() > highest or (signed and values.min() < -highest - 1))
    )
    return (values if is_clean else _select_bits(values, stored, high)).reshape(shape)


def _select_bits(values: NDArray[Any], stored: int, high: int) -> NDArray[Any]:
    """Return the bits from ``high`` down as numbers of ``stored`` bits; signed types get the sign of the highest bit."""
    allocated = values.dtype.itemsize * 8
    return (values << (allocated - 1 - high)) >> (allocated - stored)


def reduce_to_stored_bits(values: NDArray[Any], header: Dataset) -> NDArray[Any]:
    """Return decoded values without bits above Bits Stored: a compressed frame may contain more bits than its header says."""
    stored = short(header, "BitsStored") or 0
    is_reduced = not 0 < stored < values.dtype.itemsize * 8 or int(header.get("BitsAllocated") or 0) == 1
    return values if is_reduced else _select_bits(values, stored, stored - 1)


def decode_words(dataset: Dataset) -> NDArray[Any]:
    """Return the pixels ([frames,] rows, columns) with the bits beside the stored values, which :func:`decode_pixels` leaves out.

    Raises:
        BadInput, Exception: see :func:`decode_pixels`.
    """
    whole = deepcopy(dataset)
    whole.BitsStored, whole.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    return decode_pixels(whole)


def stored_pixels(dataset: Dataset, values: NDArray[Any]) -> bytes:
    """Return decoded values as pixel data: not compressed, little endian, of the claimed size and without other bits.

    Bits beside the value may hold an overlay with a name. Bits Stored and High Bit of the data set are set to what is returned:
    signed values fill their words, so that no bit is left unused.

    Args:
        dataset: of which :func:`decode_pixels` returned ``values``.
    """
    if int(dataset.BitsAllocated) == 1:
        return np.packbits(values.ravel(), bitorder="little").tobytes()
    if int(dataset.get("PixelRepresentation") or 0):
        dataset.BitsStored = dataset.BitsAllocated
    dataset.HighBit = int(dataset.BitsStored) - 1
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def rescale_of(header: Dataset, index: int = 0) -> tuple[float, float]:
    """Return slope and intercept of a frame; 1 and 0 where the header states only one of them, or neither."""
    items = [header]
    if not is_absent(header, "PerFrameFunctionalGroupsSequence"):
        groups = (header.PerFrameFunctionalGroupsSequence[index], *header.get("SharedFunctionalGroupsSequence", ()))
        items = [item for group in groups for item in group.get("PixelValueTransformationSequence", ())] + items
    for item in items:
        slope, intercept = text(item, "RescaleSlope"), text(item, "RescaleIntercept")
        if slope or intercept:
            return float(slope or 1), float(intercept or 0)
    return 1.0, 0.0


def rescale(plane: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    """Apply slope and intercept; the identity returns the stored values in their type."""
    return plane if (slope, intercept) == (1.0, 0.0) else plane.astype(np.float64) * slope + intercept
