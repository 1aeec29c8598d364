"""Pixels that the header marks as padding (PS3.3 C.7.5.1.1.2) are background, whatever values stand for them."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.dicom.padding import PADDED, UNCLEAR_PADDING
from components.ingestion.formats.voxels import NEGATIVE
from components.ingestion.volume import Volume
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, transcode, voxels, write_stack

CARD = make_card(formats=("DICOM",))
RIM = np.s_[:, :, :5]
"""Pixels of the tests' images that are padded."""


def _padded(value: int, dtype: str = "u2", others: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return values (slices, rows, columns) whose rim has the padding value."""
    values = (voxels(5) if others is None else others).astype(dtype)
    values[RIM] = value
    return values


def _expected(background: float = 0, others: NDArray[Any] | None = None) -> NDArray[np.float64]:
    values = (voxels(5) if others is None else others).astype(np.float64)
    values[RIM] = background
    return values


def _ingest(folder: Path) -> tuple[list[Volume], list[tuple[int, str]]]:
    notices = ingest(CARD, folder / "source", folder / "data", DEMO_KEY).notices
    volumes = [read_volume(folder / "data", series, CARD) for series in list_series(folder / "data", CARD.id)]
    return volumes, [(notice.count, notice.text) for notice in notices]


def _check(folder: Path, expected: NDArray[Any], caplog: pytest.LogCaptureFixture, files: int = 5) -> None:
    """Require these voxels and a notice about so many files of ``folder/source``, from an ingestion and for a prediction."""
    (volume,), notices = _ingest(folder)
    np.testing.assert_allclose(volume.voxels, expected, rtol=1e-6)
    assert notices == [(files, PADDED)]
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(read_path(folder / "source").voxels, expected, rtol=1e-6)
    assert caplog.text.count(PADDED) == 1


def _set_raw(path: Path, vr: str, **values: int) -> None:
    """Set elements under a VR: US of a negative value is its two's complement."""

    def change(item: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            item.add_new(pydicom.datadict.tag_for_keyword(keyword), vr, value & 0xFFFF if vr == "US" else value)  # type: ignore[arg-type]

    edit(path, change)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian", "deflated", "rle", "jls", "jpeg"])
def test_the_highest_value_as_padding_in_every_transfer_syntax(
    tmp_path: Path, syntax: str, caplog: pytest.LogCaptureFixture
) -> None:
    for path in write_stack(tmp_path / "source", "s", _padded(65535), PixelPaddingValue=65535):
        transcode(path, syntax)
    _check(tmp_path, _expected(), caplog)


@pytest.mark.parametrize("vr", ["SS", "US"])
@pytest.mark.parametrize("value", [-2000, -32768])
def test_a_negative_value_in_signed_images_under_either_vr(
    tmp_path: Path, vr: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    for path in write_stack(tmp_path / "source", "s", _padded(value, "i2")):
        _set_raw(path, vr, PixelPaddingValue=value)
    _check(tmp_path, _expected(), caplog)


def test_padding_of_eight_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = voxels(5) // 2
    write_stack(tmp_path / "source", "s", _padded(255, "u1", others), PixelPaddingValue=255)
    _check(tmp_path, _expected(0, others), caplog)


@pytest.mark.parametrize("ends", [(60000, 65000), (65000, 60000)])
def test_a_range_of_padding_in_either_order(tmp_path: Path, ends: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    values = _padded(60000)
    values[:, :, 2:4], values[:, :, 4] = 65000, 62345
    write_stack(tmp_path / "source", "s", values, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    _check(tmp_path, _expected(), caplog)


def test_a_limit_without_a_value_marks_nothing(tmp_path: Path) -> None:
    write_stack(tmp_path / "source", "s", _padded(500), PixelPaddingRangeLimit=500)
    (volume,), notices = _ingest(tmp_path)
    assert volume.voxels.max() == 500 and not notices


def test_padding_that_is_background_already_is_not_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Scanners write 0 into the element, and 0 where there is no signal."""
    write_stack(tmp_path / "source", "s", _padded(0), PixelPaddingValue=0)
    (volume,), notices = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, _expected())
    assert not notices
    read_path(tmp_path / "source")
    assert PADDED not in caplog.text


def test_a_value_that_no_pixel_has_changes_nothing(tmp_path: Path) -> None:
    write_stack(tmp_path / "source", "s", voxels(5), PixelPaddingValue=65535)
    (volume,), notices = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels(5))
    assert not notices


@pytest.mark.parametrize(("slope", "intercept"), [("2", "50"), ("0.5", "-10")])
def test_stored_values_are_compared_and_background_is_rescaled_zero(
    tmp_path: Path, slope: str, intercept: str, caplog: pytest.LogCaptureFixture
) -> None:
    attributes = {"RescaleSlope": slope, "RescaleIntercept": intercept}
    write_stack(tmp_path / "source", "s", _padded(65535), PixelPaddingValue=65535, **attributes)
    expected = voxels(5) * float(slope) + float(intercept)
    _check(tmp_path, _expected(0, expected), caplog)


def test_background_is_the_lowest_of_negative_values(tmp_path: Path) -> None:
    values = voxels(5).astype(np.int16) - 500
    write_stack(tmp_path / "source", "s", _padded(0, "i2", values), PixelPaddingValue=0)
    (volume,), notices = _ingest(tmp_path)
    lowest = values[:, :, 5:].min()
    np.testing.assert_array_equal(volume.voxels, _expected(lowest, values))
    assert sorted(text for _, text in notices) == sorted([NEGATIVE, PADDED])


def test_slices_of_padding_alone_are_background_and_a_volume_of_it_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values, expected = _padded(65535), _expected()
    values[0], expected[0] = 65535, 0
    write_stack(tmp_path / "source", "s", values, PixelPaddingValue=65535)
    _check(tmp_path, expected, caplog)
    empty = np.full((5, 28, 24), 65535, np.uint16)
    write_stack(tmp_path / "empty", "e", empty, PixelPaddingValue=65535)
    with pytest.raises(BadInput, match="no signal"):
        read_path(tmp_path / "empty")


@pytest.mark.parametrize("slopes", [(), (1, 2, 3, 4, 5)])
def test_padding_of_enhanced_images(tmp_path: Path, slopes: tuple[int, ...], caplog: pytest.LogCaptureFixture) -> None:
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(_padded(65535))]
    path = dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames)
    _set_raw(path, "US", PixelPaddingValue=65535)

    def scale(item: pydicom.Dataset) -> None:
        for groups, slope in zip(item.PerFrameFunctionalGroupsSequence, slopes, strict=True):
            groups.PixelValueTransformationSequence = [pydicom.Dataset()]
            groups.PixelValueTransformationSequence[0].RescaleSlope = str(slope)
            groups.PixelValueTransformationSequence[0].RescaleIntercept = "0"

    if slopes:
        edit(path, scale)
    expected = voxels(5) * np.array(slopes or (1,) * 5)[:, None, None]
    _check(tmp_path, _expected(0, expected), caplog, files=1)


def test_padding_of_a_mosaic(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with gzip.open(Path(nibabel.__file__).parent / "nicom" / "tests" / "data" / "siemens_dwi_0.dcm.gz") as stream:
        image = pydicom.dcmread(stream)
    image.PatientID = "patient-1"
    tiles = dicom_files.random_pixels(image.Rows, image.Columns)
    tiles[::7] = 0
    image.PixelData = tiles.tobytes()
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "m.dcm"
    image.save_as(path)
    expected = read_path(path).voxels
    image.PixelData = np.where(tiles == 0, 4095, tiles).astype(np.uint16).tobytes()
    image.save_as(path)
    _set_raw(path, "US", PixelPaddingValue=4095)
    _check(tmp_path, expected, caplog, files=1)


MALFORMED: dict[str, tuple[str, Any, bool]] = {
    "two values": ("US", [65535, 65534], True),
    "two values that no pixel has": ("US", [3, 5], False),
    "text": ("LO", "none", False),
    "letters as words": ("US", b"none", False),
    "three bytes": ("OB", b"abc", False),
    "no value": ("US", None, False),
}


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "big endian"])
@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("is_limit", [False, True])
def test_an_element_that_cannot_be_read_is_ignored(
    tmp_path: Path, case: str, syntax: str, is_limit: bool, caplog: pytest.LogCaptureFixture
) -> None:
    vr, value, is_unclear = MALFORMED[case]
    keyword = "PixelPaddingRangeLimit" if is_limit else "PixelPaddingValue"
    attributes = {"PixelPaddingValue": 1} if is_limit else {}
    values = _padded(65535)
    for path in write_stack(tmp_path / "source", "s", values, **attributes):
        edit(path, lambda item: _add_malformed(item, keyword, vr, value))
        transcode(path, syntax)
    (volume,), notices = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, values)
    is_told = is_unclear and not is_limit
    assert [text for _, text in notices] == ([UNCLEAR_PADDING] if is_told else [])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(read_path(tmp_path / "source").voxels, values)
    assert caplog.text.count(UNCLEAR_PADDING) == is_told


def _add_malformed(item: pydicom.Dataset, keyword: str, vr: str, value: Any) -> None:
    if isinstance(value, bytes):
        tag = pydicom.tag.Tag(keyword)
        item[keyword] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    else:
        item.add_new(keyword, vr, value)


@pytest.mark.parametrize("syntax", ["explicit", "implicit", "rle", "jls"])
@pytest.mark.parametrize(("word", "dtype"), [(65535, "u2"), (63536, "u2"), (2096, "i2"), (-2000, "i2")])
def test_padding_beyond_the_stored_bits(
    tmp_path: Path, word: int, dtype: str, syntax: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Decoding leaves 12 bits of the word, so that 65535 is 4095."""
    others = voxels(5) // 2
    for path in write_stack(
        tmp_path / "source", "s", _padded(word, dtype, others), BitsStored=12, HighBit=11, PixelPaddingValue=word
    ):
        transcode(path, syntax)
    _check(tmp_path, _expected(0, others), caplog)


def test_padding_beyond_the_stored_bits_that_no_word_has_marks_nothing(tmp_path: Path) -> None:
    """Without its highest bits, 63536 is 2096, which is signal."""
    values = _padded(2096)
    write_stack(tmp_path / "source", "s", values, BitsStored=12, HighBit=11, PixelPaddingValue=63536)
    (volume,), notices = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, values)
    assert not notices
    np.testing.assert_array_equal(read_path(tmp_path / "source").voxels, values)


def test_padding_of_enhanced_images_beyond_the_stored_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = voxels(5) // 2
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(_padded(65535, "u2", others))]
    path = dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames, BitsStored=12, HighBit=11)
    _set_raw(path, "US", PixelPaddingValue=65535)
    _check(tmp_path, _expected(0, others), caplog, files=1)
