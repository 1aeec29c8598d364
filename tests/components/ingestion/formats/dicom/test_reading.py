"""DICOM is recognized by its content: with and without preamble, magic and file meta information, in every encoding."""

from __future__ import annotations

import tarfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.dicom import reading
from components.ingestion.formats.sniff import detect_format
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, voxels, write_stack

CARD = make_card(formats=("DICOM",))


def _write_bare(path: Path, implicit: bool, little: bool, first: str) -> None:
    """Rewrite a file as its data set alone, which begins with the element ``first``."""
    dataset = pydicom.dcmread(path)
    if first == "SpecificCharacterSet":
        dataset.SpecificCharacterSet = "ISO_IR 100"
    if not little:
        dataset.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    if first == "SOPClassUID":
        del dataset.ImageType
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, pydicom.Dataset(dataset), implicit_vr=implicit, little_endian=little)
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize("first", ["SpecificCharacterSet", "ImageType", "SOPClassUID"])
@pytest.mark.parametrize(("implicit", "little"), [(True, True), (False, True), (False, False)])
def test_bare_data_sets_are_read(tmp_path: Path, implicit: bool, little: bool, first: str) -> None:
    values = voxels(3)
    for path in write_stack(tmp_path / "source", "s", values):
        _write_bare(path, implicit, little, first)
        path.rename(path.with_suffix(""))
    ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    (series,) = list_series(tmp_path / "data", CARD.id)
    np.testing.assert_array_equal(read_volume(tmp_path / "data", series, CARD).voxels, values)
    np.testing.assert_array_equal(read_path(tmp_path / "source").voxels, values)


@pytest.mark.parametrize("start", [128, 132], ids=["no preamble", "no preamble and magic"])
def test_files_without_their_preamble_are_read(tmp_path: Path, start: int) -> None:
    values = voxels(2)
    for path in write_stack(tmp_path, "s", values):
        path.write_bytes(path.read_bytes()[start:])
    np.testing.assert_array_equal(read_path(tmp_path).voxels, values)


def test_an_object_behind_other_content_is_refused_by_name(tmp_path: Path) -> None:
    (path,) = write_stack(tmp_path, "s", voxels(1))
    path.write_bytes(b"--boundary\r\nContent-Type: application/dicom\r\n\r\n" + path.read_bytes())
    assert detect_format(path) == "dicom"
    with pytest.raises(BadInput, match="a DICOM object that begins 47 bytes behind the start of the file"):
        read_path(path)


def test_an_archive_of_dicom_files_is_not_one(tmp_path: Path) -> None:
    write_stack(tmp_path / "source", "s", voxels(2))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(tmp_path / "source", "source")
    assert detect_format(tmp_path / "a.tar") is None


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-implicit", "DICOMDIR-bigEnd"])
def test_the_directory_of_a_medium_is_no_image_and_counted_among_the_files_of_the_layout(tmp_path: Path, name: str) -> None:
    write_stack(tmp_path / "source", "s", voxels(2))
    directory = Path(str(get_testdata_file(f"dicomdirtests/{name}", download=False)))
    (tmp_path / "source" / "DICOMDIR").write_bytes(directory.read_bytes())
    report = ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert (report.series, report.files_of_layout, report.quarantined) == (1, 1, ())


@given(st.binary(min_size=1, max_size=400))
def test_other_bytes_are_no_data_set(content: bytes) -> None:
    assert not reading._is_bare(content)


@given(cut=st.integers(0, 2355))
@example(cut=9).via("within the number of the meta information's length")
@example(cut=379).via("within the modality")
def test_a_file_that_was_cut_off_is_called_so(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    (path,) = write_stack(folder, "s", voxels(1))
    content = path.read_bytes()
    assert len(content) > 132 + 2355
    path.write_bytes(content[: 132 + cut])
    with pytest.raises(BadInput) as raised:
        read_path(path)
    assert raised.value.what in (
        "ends before its pixel data: cut off, or exported without pixels",
        "a DICOM object without modality and pixels: cut off, or no image",
        "fewer pixels than the header says",
        "no pixel data",
        "a DICOM header that is cut off",
    ), raised.value.what


def test_a_header_without_pixels_is_refused_before_its_series_is_planned(tmp_path: Path) -> None:
    paths = write_stack(tmp_path / "source", "s", voxels(3))
    edit(paths, lambda item: item.__delattr__("PixelData"))
    with pytest.raises(BadInput, match="3 files rejected"):
        ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda body: zlib.compress(b"\0" * 2**20)[2:-4], "unpacks to more than 0 MiB"),
        (lambda body: body[: len(body) // 2], "is cut short"),
        (lambda body: b"\xff" * 100, "is damaged"),
    ],
)
def test_a_deflated_data_set_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: object, reason: str) -> None:
    (path,) = write_stack(tmp_path, "s", voxels(1))
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    content = path.read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    path.write_bytes(content[:end] + make(content[end:]))  # type: ignore[operator]
    monkeypatch.setattr(reading, "MAX_DECOMPRESSED_BYTES", 2**19)
    with pytest.raises(BadInput, match=f"a deflated data set that {reason}"):
        read_path(path)
