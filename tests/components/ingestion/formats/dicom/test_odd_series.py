"""Series with odd geometry and values: one volume, or a refusal that names the cause. Expected values are those of the standard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset

from components.errors import BadInput
from components.ingestion import ingest, list_series, read_path, read_volume
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.volume import IngestReport, Volume
from tests.helpers import dicom_files
from tests.helpers.real_world.common import make_card
from tests.helpers.real_world.dicom_series import PHILIPS, edit, voxels, write_stack

CARD = make_card(formats=("DICOM",))


def _ingest(folder: Path) -> tuple[IngestReport, list[Volume]]:
    report = ingest(CARD, folder / "source", folder / "data", DEMO_KEY)
    return report, [read_volume(folder / "data", series, CARD) for series in list_series(folder / "data", CARD.id)]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", ("9.9949", "9.9951")),
        ("PixelSpacing", (["0.93749", "0.93749"], ["0.93751", "0.93751"])),
        ("PixelSpacing", (["0.4687500", "0.46875"], ["0.46875", "0.4687500"])),
        ("InstanceNumber", (None, None)),
        ("ImageOrientationPatient", ([1, 0, 0, 0, 1, 0], [1, 0.0004, 0, -0.0004, 1, 0])),
    ],
)
def test_slices_that_differ_by_rounding_are_one_volume(tmp_path: Path, keyword: str, values: tuple[object, object]) -> None:
    expected = voxels(8)
    for place, path in enumerate(write_stack(tmp_path / "source", "s", expected)):
        edit(path, lambda item, place=place: setattr(item, keyword, values[place % 2]))  # type: ignore[misc]
    report, (volume,) = _ingest(tmp_path)
    assert not report.quarantined
    np.testing.assert_array_equal(volume.voxels, expected)


def test_a_distance_that_the_header_states_differently_is_told_and_the_positions_count(tmp_path: Path) -> None:
    write_stack(tmp_path / "source", "s", voxels(5), SpacingBetweenSlices=2)
    report, (volume,) = _ingest(tmp_path)
    assert volume.spacing_mm[0] == pytest.approx(4.0)
    (notice,) = report.notices
    assert notice.count == 5 and "4.00 mm apart by their positions, 2.00 mm by Spacing Between Slices" in notice.text


def test_slopes_of_each_slice_are_applied(tmp_path: Path) -> None:
    stored = voxels(6)
    for place, path in enumerate(write_stack(tmp_path / "source", "s", stored, Manufacturer=PHILIPS)):
        scale = {"RescaleSlope": str(1 + 0.25 * place), "RescaleIntercept": str(-10.0 * place)}
        edit(path, lambda item, scale=scale: item.update({**scale}))  # type: ignore[misc]
    _, (volume,) = _ingest(tmp_path)
    places = np.arange(6)[:, None, None]
    np.testing.assert_allclose(volume.voxels, stored * (1 + 0.25 * places) - 10.0 * places, rtol=1e-6)


@pytest.mark.parametrize(("kept", "reason"), [(5, "functional groups of 5 frames for 6 frames"), (1, "of 1 frames for 6 frames")])
def test_fewer_functional_groups_than_frames_are_refused(tmp_path: Path, kept: int, reason: str) -> None:
    frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(voxels(6))]
    dicom_files.write_enhanced(tmp_path / "e.dcm", frames)

    def drop(item: Dataset) -> None:
        item.PerFrameFunctionalGroupsSequence = item.PerFrameFunctionalGroupsSequence[:kept]

    edit(tmp_path / "e.dcm", drop)
    with pytest.raises(BadInput, match=reason):
        read_path(tmp_path / "e.dcm")


MOSAIC = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


@pytest.mark.parametrize("is_enhanced", [False, True])
def test_a_mosaic_that_was_taken_apart_is_read_as_its_slices(tmp_path: Path, is_enhanced: bool) -> None:
    expected = voxels(6)
    if is_enhanced:
        frames = [{"plane": plane, "offset": 4.0 * place} for place, plane in enumerate(expected)]
        dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames, ImageType=MOSAIC)
    else:
        write_stack(tmp_path / "source", "s", expected, ImageType=MOSAIC)
    report, (volume,) = _ingest(tmp_path)
    assert not report.quarantined
    np.testing.assert_array_equal(volume.voxels, expected)
    np.testing.assert_array_equal(read_path(tmp_path / "source").voxels, expected)


@pytest.mark.parametrize("is_enhanced", [False, True])
def test_a_mosaic_without_its_private_header_is_refused(tmp_path: Path, is_enhanced: bool) -> None:
    tiles: NDArray[np.uint16] = voxels(1, rows=56, columns=48)
    if is_enhanced:
        path = dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", [{"plane": tiles[0], "offset": 0.0}], ImageType=MOSAIC)
    else:
        (path,) = write_stack(tmp_path / "source", "s", tiles, ImageType=MOSAIC)
    write_stack(tmp_path / "source", "other", voxels(3))
    report, (volume,) = _ingest(tmp_path)
    assert volume.voxels.shape[0] == 3
    assert [item.reason for item in report.quarantined] == [
        "a mosaic of slices without the private header that says how they are tiled"
    ]
    with pytest.raises(BadInput, match="a mosaic of slices without the private header"):
        read_path(path)


def test_slices_of_one_sop_instance_uid_are_no_copies_and_none_is_used(tmp_path: Path) -> None:
    """An anonymizer that writes one UID into all slices must not leave a volume of one slice."""
    paths = write_stack(tmp_path / "source", "intact", voxels(4))
    (tmp_path / "source" / "copy.dcm").write_bytes(paths[1].read_bytes())
    edit(write_stack(tmp_path / "source", "shared", voxels(6, seed=1)), lambda item: setattr(item, "SOPInstanceUID", "1.2.3"))
    report, (volume,) = _ingest(tmp_path)
    np.testing.assert_array_equal(volume.voxels, voxels(4))
    copy, shared = sorted(report.quarantined, key=lambda entry: entry.reason, reverse=True)
    assert copy.reason == "the same SOP Instance UID as another file"
    assert "one SOP Instance UID for images at different positions" in shared.reason and "6 and 5 more of 11" in shared.path


@pytest.mark.parametrize("is_enhanced", [False, True])
def test_two_parallel_stacks_of_one_series_are_two_volumes(tmp_path: Path, is_enhanced: bool) -> None:
    """Sagittal stacks of both knees: Stack IDs, or acquisitions whose instance numbers run on, say that no slice is missing."""
    first, second = voxels(5), voxels(4, seed=1)
    if is_enhanced:
        places = [(1, 4.0 * place) for place in range(5)] + [(2, 150.0 + 4.0 * place) for place in range(4)]
        planes = [*first, *second]
        frames = [{"plane": plane, "offset": offset, "stack": stack} for plane, (stack, offset) in zip(planes, places, strict=True)]
        dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames, orientation=dicom_files.SAGITTAL)
    else:
        uid = {"SeriesInstanceUID": "1.2.3.9", "StudyInstanceUID": "1.2.3.8", "orientation": dicom_files.SAGITTAL}
        write_stack(tmp_path / "source", "a", first, **uid)
        for number, path in enumerate(write_stack(tmp_path / "source", "b", second, **uid), start=6):
            edit(path, lambda item, number=number: _move_to_acquisition(item, number))  # type: ignore[misc]
    report, volumes = _ingest(tmp_path)
    assert not report.quarantined
    by_size = sorted(volumes, key=lambda volume: len(volume.voxels))
    for volume, expected in zip(by_size, (second, first), strict=True):
        np.testing.assert_array_equal(np.sort(volume.voxels, axis=None), np.sort(expected, axis=None))
        assert volume.spacing_mm[0] == pytest.approx(4.0)
    with pytest.raises(BadInput, match="2 volumes where one is expected"):
        read_path(tmp_path / "source")


def _move_to_acquisition(item: Dataset, number: int) -> None:
    x, y, z = item.ImagePositionPatient
    item.ImagePositionPatient, item.InstanceNumber, item.AcquisitionNumber = [x - 150, y, z], number, 2
