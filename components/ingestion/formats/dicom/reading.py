"""Read DICOM data sets by their content: files of PS3.10, bare data sets without preamble and file meta information, files whose
preamble is missing, gzipped and deflated ones.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom import Dataset
from pydicom.errors import BytesLengthException
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from components.errors import BadInput
from components.ingestion.formats.gzipped import GZIP_MAGIC, MAX_DECOMPRESSED_BYTES, is_gzipped, read_decompressed

SEARCHED_BYTES = 4096
"""Where the magic of a file is searched for if it is not behind the preamble."""
_MAGIC, _PREAMBLE = b"DICM", 128
_META_END = 144
"""Offset behind the length element of the file meta information (PS3.10 7.1)."""
_META_START = _MAGIC + b"\x02\x00\x00\x00UL\x04\x00"
"""Magic and the first element of the file meta information: its length."""
_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
"""Class of a DICOMDIR: the directory of a medium, which lists files and is none of them (PS3.10 8.6)."""
_PIXEL_TAGS = tuple(Tag(0x7FE0, element) for element in (0x0008, 0x0009, 0x0010))
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_FIRST_GROUPS = (0x0002, 0x0008)
_MIN_ELEMENTS, _MAX_HEADER_ELEMENT_BYTES = 3, 2**16


def is_dicom(head: bytes, path: Path) -> bool:
    """Return whether a file is DICOM: a magic behind the preamble or elsewhere at the start, or the elements of a bare data set.

    Args:
        head: first bytes of the (decompressed) content.
        path: the file, searched further where the head does not decide.
    """
    if _DIRECTORY_CLASS in head[_PREAMBLE:]:
        return False
    if head[_PREAMBLE : _PREAMBLE + 4] == _MAGIC or _is_bare(head):
        return True
    if head.startswith(b"PK") or is_gzipped(path):
        return False
    with path.open("rb") as stream:
        start = stream.read(SEARCHED_BYTES)
    return _META_START in start and start[257:262] != b"ustar"


def _is_bare(head: bytes) -> bool:
    """Return whether bytes begin with the elements of a data set (group 0008) or of file meta information (group 0002)."""
    forms = (("<", True), (">", True), ("<", False))
    return any(_starts_with_elements(head, order, explicit) for order, explicit in forms)


def _starts_with_elements(head: bytes, order: str, explicit: bool) -> bool:
    """Return whether the head is a sequence of elements in ascending order, in explicit or implicit VR."""
    place, previous, count = 0, -1, 0
    while place + 12 <= len(head):
        group, element = struct.unpack_from(f"{order}HH", head, place)
        tag = group << 16 | element
        if tag <= previous or (count == 0 and (group not in _FIRST_GROUPS or element > 0x0100)):
            return False
        length, header_bytes = _element_length(head, place, order, explicit)
        if length is None:
            return False
        place, previous, count = place + header_bytes + length, tag, count + 1
    return count >= _MIN_ELEMENTS or (count == _MIN_ELEMENTS - 1 and place > len(head))


def _element_length(head: bytes, place: int, order: str, explicit: bool) -> tuple[int | None, int]:
    """Return the bytes of an element's value (None where they are implausible), and those of its tag, VR and length."""
    vr = head[place + 4 : place + 6]
    if explicit and vr in _SHORT_VRS:
        return struct.unpack_from(f"{order}H", head, place + 6)[0], 8
    if explicit and vr not in _LONG_VRS:
        return None, 0
    offset = 8 if explicit else 4
    length = struct.unpack_from(f"{order}I", head, place + offset)[0]
    if length == 0xFFFFFFFF:
        return len(head), offset + 4  # a sequence of undefined length fills the rest of the head
    return (length if length < _MAX_HEADER_ELEMENT_BYTES else None), offset + 4


def read_header(path: Path) -> Dataset:
    """Read the header of a file without its pixels.

    Raises:
        BadInput: a gzipped or deflated file that cannot be decompressed, or an object behind other content.
    """
    return read_header_to_pixels(path)[0]


def read_header_to_pixels(path: Path) -> tuple[Dataset, bool]:
    """Read the header of a file; return it and whether pixel data follows.

    Raises:
        BadInput: see :func:`read_header`.
    """
    with _open(path) as stream:
        header = _read(stream, path, stop_before_pixels=True)
        is_deflated = header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
        return header, is_deflated or _next_tag(stream, header) in _PIXEL_TAGS


def read_object(path: Path) -> Dataset:
    """Read the data set of a file with its pixels, equal to the result of :func:`pydicom.dcmread`.

    The file meta information of a bare data set states the transfer syntax in which pydicom read it.

    Raises:
        BadInput: see :func:`read_header`.
    """
    with _open(path) as stream:
        return _read(BytesIO(stream.read()), path, stop_before_pixels=False)


def is_plain(path: Path) -> bool:
    """Return whether libraries can read a file as it is: with preamble and magic, neither gzipped nor deflated."""
    with path.open("rb") as stream:
        head = stream.read(SEARCHED_BYTES)
    deflated = DeflatedExplicitVRLittleEndian.encode()
    return head[_PREAMBLE : _PREAMBLE + 4] == _MAGIC and deflated not in head


def _open(path: Path) -> BinaryIO:
    """Open a file, decompressed if it is gzipped, at its preamble or, where there is none, at the data set.

    Raises:
        BadInput: other content before the object, or a data set that cannot be inflated.
    """
    stream: BinaryIO = path.open("rb")
    head = stream.read(SEARCHED_BYTES)
    if head.startswith(GZIP_MAGIC):
        stream.close()
        stream = BytesIO(read_decompressed(path))
        head = stream.read(SEARCHED_BYTES)
    stream.seek(0)
    place = head.find(_META_START)
    if head[_PREAMBLE : _PREAMBLE + 4] == _MAGIC or place == -1 or _is_bare(head):
        _check_deflated(stream, head, path)
        return stream
    with stream:
        if place > _PREAMBLE:
            raise BadInput(
                f"a DICOM object that begins {place - _PREAMBLE} bytes behind the start of the file",
                where=path.name,
                remedy="unpack the archive or message that contains it",
            )
        return BytesIO(stream.read()[place + len(_MAGIC) :])


def _read(stream: BinaryIO, path: Path, stop_before_pixels: bool) -> Dataset:
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=stop_before_pixels, force=True)
    except (struct.error, BytesLengthException):  # the latter: a number with too few bytes
        raise BadInput("a DICOM header that is cut off", where=path.name, remedy="get the file again") from None
    if dataset.file_meta.get("TransferSyntaxUID") is None:
        implicit, little = dataset.original_encoding
        explicit_syntax = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit_syntax
    return dataset


def _check_deflated(stream: BinaryIO, head: bytes, path: Path) -> None:
    """Bound what a deflated data set (PS3.5 A.5) unpacks to; pydicom has no limit.

    Args:
        stream: at the start of the file, where it is left.
        head: first bytes of the file.

    Raises:
        BadInput: it cannot be inflated, or unpacks to more than the limit of gzipped files.
    """
    if DeflatedExplicitVRLittleEndian.encode() not in head or not head.startswith(_META_START, _PREAMBLE):
        return
    stream.seek(_META_END + int.from_bytes(head[_META_END - 4 : _META_END], "little"))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        size = len(inflater.decompress(stream.read(), MAX_DECOMPRESSED_BYTES + 1))
    except zlib.error:
        raise BadInput("a deflated data set that is damaged", where=path.name, remedy="get the file again") from None
    if size > MAX_DECOMPRESSED_BYTES or not inflater.eof:
        fault = f"unpacks to more than {MAX_DECOMPRESSED_BYTES >> 20} MiB" if size > MAX_DECOMPRESSED_BYTES else "is cut short"
        raise BadInput(f"a deflated data set that {fault}", where=path.name, remedy="get the file again")
    stream.seek(0)


def _next_tag(stream: BinaryIO, header: Dataset) -> BaseTag | None:
    """Return the tag at which reading a header stopped; None at the end of the file."""
    content = stream.read(4)
    if len(content) < 4:
        return None
    return Tag(*struct.unpack("<HH" if header.original_encoding[1] else ">HH", content))
