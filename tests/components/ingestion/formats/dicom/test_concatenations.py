"""Multi-frame images that were split into parts (PS3.3 C.7.6.16.1.2): one volume, or a refusal that names what is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_quarantine, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.dicom.concatenations import TOTAL_UNKNOWN, Part, find_fault
from components.ingestion.study_reader import read_study
from components.ingestion.volume import IngestReport, Volume
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import edit, transcode, voxels

CARD = make_card(formats=("DICOM",))
SIZES = (3, 2, 4)


def _write_parts(folder: Path, values: NDArray[np.uint16], names: str = "cab", echoes: int = 1, **attributes: Any) -> list[Path]:
    """Write a concatenated image in parts of 3, 2 and 4 frames; names in another order than the parts.

    Args:
        echoes: number of echo times that alternate from frame to frame.
    """
    paths, first = [], 0
    for number, (size, name) in enumerate(zip(SIZES, names, strict=True), start=1):
        places = range(first, first + size)
        frames = [
            {"plane": values[place], "offset": 4.0 * (place // echoes), "echo": 12 + 10 * (place % echoes)} for place in places
        ]
        part = {
            "ConcatenationUID": "1.2.3.4",
            "InConcatenationNumber": number,
            "InConcatenationTotalNumber": len(SIZES),
            "ConcatenationFrameOffsetNumber": first,
            "SOPInstanceUIDOfConcatenationSource": "1.2.3.5",
        }
        paths.append(dicom_files.write_enhanced(folder / f"{name}.dcm", frames, **{**part, **attributes}))
        first += size
    return paths


def _ingest(folder: Path) -> tuple[IngestReport, list[Volume]]:
    report = ingest(CARD, folder / "source", folder / "data", DEMO_KEY)
    return report, [read_volume(folder / "data", series, CARD) for series in list_series(folder / "data", CARD.id)]


@pytest.mark.parametrize("names", ["abc", "cba", "bca"])
@pytest.mark.parametrize("syntax", ["explicit", "rle", "deflated", "big endian"])
def test_parts_in_any_order_are_one_volume(tmp_path: Path, names: str, syntax: str) -> None:
    expected = voxels(9)
    for path in _write_parts(tmp_path / "source", expected, names):
        transcode(path, syntax)
    report, (volume,) = _ingest(tmp_path)
    assert not report.quarantined and not report.notices
    np.testing.assert_array_equal(volume.voxels, expected)
    assert volume.spacing_mm == pytest.approx((4, 0.9, 1.1))
    for found in (read_path(tmp_path / "source"), read_study([tmp_path / "source"])[0][0].volume):
        np.testing.assert_array_equal(found.voxels, expected)
        np.testing.assert_allclose(found.affine, volume.affine, atol=1e-3)
    again = ingest(CARD, tmp_path / "source", tmp_path / "data", DEMO_KEY)
    assert (again.files_new, again.files_removed) == (0, 0)


def test_slopes_of_each_part_are_applied(tmp_path: Path) -> None:
    stored = voxels(9)
    for number, path in enumerate(_write_parts(tmp_path / "source", stored)):
        edit(path, lambda item, number=number: item.update(_scale(1 + number)))  # type: ignore[misc]
    _, (volume,) = _ingest(tmp_path)
    slopes = np.repeat((1, 2, 3), SIZES)[:, None, None]
    np.testing.assert_allclose(volume.voxels, stored * slopes, rtol=1e-6)


def _scale(slope: int) -> Dataset:
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept = str(slope), "0"
    return item


def test_echoes_of_a_concatenated_image_are_volumes_of_their_own(tmp_path: Path) -> None:
    values = voxels(9)[:8]
    paths = _write_parts(tmp_path / "source", np.concatenate([values, values[:1]]), echoes=2)
    edit(paths[2], _drop_last_frame)
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined
    np.testing.assert_array_equal(
        sorted(volume.voxels.sum() for volume in volumes), sorted([values[::2].sum(), values[1::2].sum()])
    )


def _drop_last_frame(item: Dataset) -> None:
    item.PerFrameFunctionalGroupsSequence = item.PerFrameFunctionalGroupsSequence[:-1]
    item.NumberOfFrames -= 1
    item.PixelData = item.PixelData[: int(item.NumberOfFrames) * item.Rows * item.Columns * 2]


def _set(**values: Any) -> Callable[[Dataset], None]:
    def change(item: Dataset) -> None:
        for keyword, value in values.items():
            setattr(item, keyword, value)

    return change


FAULTS: dict[str, tuple[int | None, Callable[[Dataset], None] | None, str]] = {
    "the first is missing": (0, None, r"missing: 1 of 3, the first In-concatenation Number \(0020,9162\) 1"),
    "one between is missing": (1, None, r"missing: 1 of 3, the first In-concatenation Number \(0020,9162\) 2"),
    "the last is missing": (2, None, r"missing: 1 of 3, the first In-concatenation Number \(0020,9162\) 3"),
    "one between, no total": (1, _set(InConcatenationTotalNumber=None), r"missing: 1 of 3, the first .* 2"),
    "no number": (None, _set(InConcatenationNumber=None), r"without In-concatenation Number"),
    "one number": (None, _set(InConcatenationNumber=1), r"with one In-concatenation Number"),
    "a total too small": (None, _set(InConcatenationTotalNumber=2), r"contradict its In-concatenation Total Number"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_parts_that_are_no_whole_image_are_refused(tmp_path: Path, case: str) -> None:
    missing, change, reason = FAULTS[case]
    paths = _write_parts(tmp_path / "source", voxels(9))
    if change is not None:
        edit(paths, change)
    if missing is not None:
        paths.pop(missing).unlink()
    with pytest.raises(BadInput, match="no readable MR image"):
        _ingest(tmp_path)
    (entry,) = read_quarantine(tmp_path / "data", CARD.id)
    assert entry.kind == "geometry" and entry.remedy == "export the whole series again, with all parts of the image"
    with pytest.raises(BadInput, match=reason) as error:
        read_path(tmp_path / "source")
    assert error.value.what == entry.reason


def test_one_part_alone_is_no_image_to_predict_from(tmp_path: Path) -> None:
    paths = _write_parts(tmp_path, voxels(9))
    for path in paths:
        with pytest.raises(BadInput, match="parts of a concatenated image missing: 2 of 3"):
            read_path(path)


@pytest.mark.parametrize(("total", "is_told"), [(None, True), (1, False)])
def test_a_lone_part_without_a_number_is_a_whole_image(
    tmp_path: Path, total: int | None, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = _write_parts(tmp_path / "source", voxels(9))
    edit(first, _set(InConcatenationNumber=None, InConcatenationTotalNumber=total))
    for path in others:
        path.unlink()
    report, (volume,) = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels(9)[: SIZES[0]])
    assert [(item.count, item.text) for item in report.notices] == ([(1, TOTAL_UNKNOWN)] if is_told else [])
    with caplog.at_level(logging.WARNING):
        assert read_path(first).voxels.shape == volume.voxels.shape
    assert (TOTAL_UNKNOWN in caplog.text) == is_told


def test_many_parts_are_compared_at_once() -> None:
    parts = [Part("1.2", number, 20_000) for number in range(1, 10_001)]
    fault = find_fault(parts)
    assert fault is not None and "missing: 10000 of 20000" in fault.reason and fault.reason.endswith(" 10001")


def test_two_concatenated_images_of_a_series_are_two_volumes(tmp_path: Path) -> None:
    for number in (0, 1):
        folder = tmp_path / "source" / str(number)
        for path in _write_parts(folder, voxels(9, seed=number), ConcatenationUID=f"1.2.3.{number}"):
            edit(path, lambda item, number=number: setattr(item, "SOPInstanceUID", f"{item.SOPInstanceUID[:50]}.{number}"))  # type: ignore[misc]
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined
    expected = {voxels(9, seed=number).tobytes() for number in (0, 1)}
    assert {volume.voxels.astype(np.uint16).tobytes() for volume in volumes} == expected
    with pytest.raises(BadInput, match="2 multi-frame images where one is expected"):
        read_path(tmp_path / "source")
