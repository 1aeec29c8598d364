"""Elements are converted like pydicom converts them."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.data import get_testdata_files
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from components.ingestion.formats.dicom import fast_elements
from components.ingestion.formats.dicom.frames import frames_of
from components.ingestion.formats.dicom.pixels import read_slice

IMAGES = [path for path in map(Path, get_testdata_files("MR*.dcm")) if "PixelSpacing" in pydicom.dcmread(path, force=True)]


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_frames_are_equal_from_raw_bytes_and_from_converted_values(path: Path) -> None:
    raw, converted = (pydicom.dcmread(path, force=True) for _ in range(2))
    assert list(converted)  # iterating over a data set converts it
    assert fast_elements._raw_bytes(raw, "PixelSpacing") is not None and fast_elements._raw_bytes(converted, "PixelSpacing") is None
    assert frames_of(raw, path) == frames_of(converted, path)


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.name)
def test_a_slice_equals_what_pydicom_reads(path: Path) -> None:
    ours, theirs = read_slice(path), pydicom.dcmread(path, force=True)
    assert ours == theirs and list(ours.keys()) == list(theirs.keys())
    syntax = theirs.file_meta.get("TransferSyntaxUID")
    assert ours.file_meta.get("TransferSyntaxUID") == syntax and ours.original_encoding == theirs.original_encoding


def test_with_a_wrong_length_of_the_meta_information_pydicom_reads_the_file(tmp_path: Path) -> None:
    content = bytearray(next(path for path in IMAGES if path.name == "MR_small.dcm").read_bytes())
    content[140:144] = (int.from_bytes(content[140:144], "little") + 12).to_bytes(4, "little")
    (tmp_path / "slice.dcm").write_bytes(content)
    assert read_slice(tmp_path / "slice.dcm") == pydicom.dcmread(tmp_path / "slice.dcm", force=True)


def dataset(keyword: str, representation: str, value: bytes, little: bool = True) -> Dataset:
    tag = Tag(keyword)
    return Dataset({tag: RawDataElement(tag, representation, len(value), value, 0, False, little)})


@given(st.lists(st.decimals(-1000, 1000, places=3), min_size=1, max_size=6))
def test_decimal_strings_are_read_like_pydicom_reads_them(values: list[object]) -> None:
    text = "\\".join(map(str, values))
    header = dataset("ImageOrientationPatient", "DS", (text + " " * (len(text) % 2)).encode())
    ours = fast_elements.numbers(header, "ImageOrientationPatient")
    converted = header.ImageOrientationPatient
    assert (
        ours
        == tuple(map(float, converted if len(values) > 1 else [converted]))
        == fast_elements.numbers(header, "ImageOrientationPatient")
    )
    assert fast_elements.text(header, "ImageOrientationPatient") == text


@given(st.integers(0, 2**16 - 1), st.booleans())
def test_short_numbers_are_read_in_their_byte_order(value: int, little: bool) -> None:
    header = dataset("Rows", "US", value.to_bytes(2, "little" if little else "big"), little)
    assert fast_elements.short(header, "Rows") == value == header.Rows


@pytest.mark.parametrize("content", [b"", b"  ", b"a\\b", b"1\\2"])
def test_other_than_a_single_number_is_none(content: bytes) -> None:
    assert fast_elements.number(dataset("EchoTime", "DS", content), "EchoTime") is None
    assert fast_elements.number(Dataset(), "EchoTime") is None and fast_elements.short(Dataset(), "Rows") is None
    assert fast_elements.text(Dataset(), "ImageType") == ""
