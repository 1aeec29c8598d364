"""Pixel data are reduced to their stored bits in every transfer syntax: the bits beside may be an overlay with a name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import MPEG2MPML

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import SYNTAXES, edit, transcode, voxels, write_stack

CARD = make_card(formats=("DICOM",))


def _letters(values: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Return words with letters drawn in bit 15, and noise in bits 12 to 14."""
    words = values.copy()
    words[:, 5:20, [6, 12]] |= 0x8000
    words[:, 12, 6:12] |= 0x8000
    return words | (np.random.default_rng(0).integers(0, 8, words.shape, dtype=np.uint16) << 12)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_an_overlay_in_the_high_bits_is_not_written_and_not_read(tmp_path: Path, syntax: str, signed: bool) -> None:
    values = voxels(3, rows=40, columns=36).astype(np.int16) - (200 if signed else 0)
    words = _letters(values.astype(np.uint16) & 0x0FFF)
    paths = write_stack(tmp_path / "source", "s", words, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    for path in paths:
        transcode(path, syntax)
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (series,) = list_series(tmp_path / "data", CARD.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, values)
    np.testing.assert_array_equal(read_path(tmp_path / "source").voxels, values)
    for file in series.files:
        written = pydicom.dcmread(tmp_path / "data" / file.path)
        above = np.frombuffer(written.PixelData, "<u2") >> written.BitsStored if written.BitsStored < 16 else np.zeros(1)
        assert not above.any() and written.HighBit == written.BitsStored - 1
        assert written.pixel_array.min() >= values.min() and written.pixel_array.max() <= values.max()


@pytest.mark.parametrize("signed", [False, True])
def test_values_at_the_high_end_of_their_words_are_moved_down(tmp_path: Path, signed: bool) -> None:
    values = voxels(2).astype(np.int16) - (200 if signed else 0)
    words = ((values.astype(np.uint16) & 0x0FFF) << 4) | 0x5
    write_stack(tmp_path / "source", "s", words, BitsStored=12, HighBit=15, PixelRepresentation=int(signed))
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (series,) = list_series(tmp_path / "data", CARD.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, values)


def test_compressed_values_at_the_high_end_are_refused_by_name(tmp_path: Path) -> None:
    (path,) = write_stack(tmp_path, "s", voxels(1), BitsStored=12, HighBit=11)
    transcode(path, "rle")
    edit(path, lambda item: setattr(item, "HighBit", 15))
    with pytest.raises(BadInput, match="values of 12 bits whose highest is bit 15"):
        read_path(path)


def test_enhanced_frames_are_reduced_too(tmp_path: Path) -> None:
    values = voxels(4)
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(_letters(values))]
    dicom_files.write_enhanced(tmp_path / "e.dcm", frames, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_path(tmp_path / "e.dcm").voxels, values)


def test_words_of_32_bits_are_read(tmp_path: Path) -> None:
    values = voxels(2).astype(np.uint32) * 1000
    write_stack(tmp_path / "source", "s", values)  # type: ignore[arg-type]
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (series,) = list_series(tmp_path / "data", CARD.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, values.astype(np.float32))


@pytest.mark.parametrize("keyword", ["BitsAllocated", "BitsStored", "PixelRepresentation"])
def test_pixels_that_their_header_does_not_describe_are_refused_by_name(tmp_path: Path, keyword: str) -> None:
    (path,) = write_stack(tmp_path, "s", voxels(1))
    edit(path, lambda item: item.__delattr__(keyword))
    with pytest.raises(BadInput, match=f"pixels without {keyword}"):
        read_path(path)


@pytest.mark.parametrize(("syntax", "name"), [(MPEG2MPML, "MPEG2 Main Profile / Main Level"), ("1.2.3.4", "unknown")])
def test_a_transfer_syntax_without_a_decoder_is_named(tmp_path: Path, syntax: str, name: str) -> None:
    (path,) = write_stack(tmp_path, "s", voxels(1))
    transcode(path, "rle")
    edit(path, lambda item: setattr(item.file_meta, "TransferSyntaxUID", syntax))
    with pytest.raises(BadInput, match=f"a transfer syntax that is not decoded .{name}"):
        read_path(path)
