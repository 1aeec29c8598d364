"""A written slice is proved by reading its file once, and a written volume by its slices: no second decoding finds more."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.uid import RLELossless

from components.errors import MachineFault
from components.ingestion import ingest, list_series, read_quarantine
from components.ingestion.cleaning import CleanedFile, clean_file
from components.ingestion.deidentification.pseudonyms import DEMO_KEY, Pseudonyms
from components.ingestion.formats.base import Output, ReadBackError, WriteContext
from components.ingestion.formats.dicom import classic, planned_files
from components.ingestion.formats.dicom.classic import check_slices, read_series
from components.ingestion.formats.dicom.pixels import decode_pixels
from components.ingestion.formats.dicom.planned_files import PlannedDicom
from components.ingestion.staging import Staging
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, voxels, write_stack

CARD = make_card()
CONTEXT = WriteContext(CARD, Pseudonyms(DEMO_KEY, CARD.id))


def _plan(path: Path) -> PlannedDicom:
    return PlannedDicom(path, f"{CARD.id}/{path.name}", "image", "p")


def _clean(path: Path, folder: Path) -> tuple[CleanedFile, Path]:
    """De-identify a file, and return the result and its staged path."""
    staging = Staging(folder / "data" / CARD.id)
    return clean_file(_plan(path), staging, CONTEXT), staging.path(_plan(path).target)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Output, bytes]:
    """A slice as it is to be written, and the bytes of its file."""
    folder = tmp_path_factory.mktemp("slice")
    (path,) = write_stack(folder, "a", voxels(1, rows=6, columns=8), RescaleSlope="2", RescaleIntercept="-7")
    output = _plan(path).prepare(CONTEXT)
    output.write(folder / "written.dcm")
    output.check(folder / "written.dcm")
    return output, (folder / "written.dcm").read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=200)
def test_a_bit_that_flips_on_the_disk_is_found(
    written: tuple[Output, bytes], tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    output, good = written
    bad = bytearray(good)
    bad[int(place * len(bad))] ^= 1 << bit
    path = tmp_path_factory.mktemp("flipped") / "a.dcm"
    path.write_bytes(bad)
    with pytest.raises(ReadBackError):
        output.check(path)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("ImagePositionPatient", [0, 0, 1]), ("PixelSpacing", [1, 2]), ("RescaleSlope", "3"), ("Rows", 8), ("PixelData", b"\1" * 96)],
)
def test_a_writer_that_alters_what_it_was_given_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, keyword: str, value: object
) -> None:
    (path,) = write_stack(tmp_path, "a", voxels(1, rows=6, columns=8), RescaleSlope="2", RescaleIntercept="-7")
    save = Dataset.save_as

    def save_altered(self: Dataset, *arguments: Any, **options: Any) -> None:
        setattr(self, keyword, value)
        save(self, *arguments, **options)

    monkeypatch.setattr(Dataset, "save_as", save_altered)
    with pytest.raises(MachineFault, match="reads back with"):
        _clean(path, tmp_path)


@pytest.mark.parametrize("element", [b"\x20\0\x32\0DS", b"\x28\0\x10\0US", b"\x28\0\x30\0DS", b"\xe0\x7f\x10\0OW"])
def test_a_disk_that_alters_a_file_is_never_the_fault_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: bytes
) -> None:
    """A bit of the position, the number of rows, the pixel size, or a pixel."""
    (path,) = write_stack(tmp_path, "a", voxels(1))
    write = Path.write_bytes

    def write_altered(self: Path, content: bytes) -> int:
        altered = bytearray(content)
        altered[altered.index(element) + (12 if element.endswith(b"OW") else 8)] ^= 1
        return write(self, altered)

    monkeypatch.setattr(Path, "write_bytes", write_altered)
    with pytest.raises(MachineFault, match="reads back with"):
        _clean(path, tmp_path)


@pytest.mark.parametrize("cut", [1, 100, 500])
def test_a_disk_that_loses_the_end_of_a_file_is_never_the_fault_of_the_input(
    written: tuple[Output, bytes], tmp_path: Path, cut: int
) -> None:
    output, good = written
    (tmp_path / "a.dcm").write_bytes(good[:-cut])
    with pytest.raises(ReadBackError):
        output.check(tmp_path / "a.dcm")


def _move(dataset: Dataset, position: float) -> None:
    dataset.ImagePositionPatient = [0.0, 0.0, position]


def _outcome(check: object, *arguments: object) -> str:
    """Return the error of a call; "" if it has none."""
    try:
        check(*arguments)  # type: ignore[operator]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


POSITIONS = st.lists(st.sampled_from([0.0, 4.0, 8.0, 8.1, 12.0, 16.3, 20.0]), min_size=1, max_size=5)


@given(
    positions=POSITIONS,
    slopes=st.lists(st.sampled_from(["1", "-0.5", "1E-45", "1E36", "3E34"]), min_size=5, max_size=5),
    rows=st.sampled_from([(6, 6, 6, 6, 6), (6, 6, 7, 6, 6)]),
    signal=st.booleans(),
)
def test_slices_form_a_volume_if_and_only_if_the_reader_reads_one(
    tmp_path_factory: pytest.TempPathFactory, positions: list[float], slopes: list[str], rows: Sequence[int], signal: bool
) -> None:
    folder = tmp_path_factory.mktemp("stack")
    results, paths = [], []
    for number, (position, slope, side) in enumerate(zip(positions, slopes, rows, strict=False)):
        plane = voxels(1, number, rows=side) if signal else np.full((1, side, 8), 7, np.uint16)
        (path,) = write_stack(folder, f"s{number}", plane, RescaleSlope=slope, RescaleIntercept="0")
        edit(path, partial(_move, position=position))
        result, staged = _clean(path, folder)
        assert result.read_back is not None
        results.append(result.read_back)
        paths.append(staged)
    assert _outcome(check_slices, paths, results) == _outcome(read_series, paths, None)


def _ingest(folder: Path) -> list[str]:
    """Ingest a folder, and return the reasons in its quarantine."""
    try:
        ingest(CARD, folder / "source", folder / "data", DEMO_KEY)
    except Exception as error:
        assert "no readable MR image" in str(error)
    return sorted({entry.reason for entry in read_quarantine(folder / "data", CARD.id)})


@pytest.mark.parametrize(
    ("values", "slope", "reason"),
    [
        (voxels(), "1E37", "values beyond single precision (3.4e38)"),
        (np.full((4, 8, 8), 100, np.uint16), "1", "no signal: every voxel has the same value"),
    ],
)
def test_a_volume_without_usable_values_is_refused(tmp_path: Path, values: NDArray[np.uint16], slope: str, reason: str) -> None:
    (tmp_path / "source").mkdir()
    write_stack(tmp_path / "source", "a", values, RescaleSlope=slope, RescaleIntercept="0")
    assert _ingest(tmp_path) == [reason]
    assert not list_series(tmp_path / "data", CARD.id)


@pytest.mark.parametrize("is_compressed", [False, True])
def test_each_written_file_is_decoded_once_and_no_series_a_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compressed: bool
) -> None:
    (tmp_path / "source").mkdir()
    paths = write_stack(tmp_path / "source", "a", voxels())
    if is_compressed:
        edit(paths, lambda item: item.compress(RLELossless))
    decoded: list[Dataset] = []

    def decode_and_count(dataset: Dataset) -> NDArray[Any]:
        decoded.append(dataset)
        return decode_pixels(dataset)

    for module in (classic, planned_files):
        monkeypatch.setattr(module, "decode_pixels", decode_and_count)
    assert _ingest(tmp_path) == []
    assert len(decoded) == 2 * len(paths)  # the source and what was written
    (series,) = list_series(tmp_path / "data", CARD.id)
    stored = [pydicom.dcmread(tmp_path / "data" / file.path).pixel_array for file in series.files]
    np.testing.assert_array_equal(
        np.sort(np.stack(stored), 0), np.sort(np.stack([pydicom.dcmread(p).pixel_array for p in paths]), 0)
    )
