"""Contours of an RT Structure Set become labels of the contoured images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.measure import find_contours

from components.catalog import DatasetCard, Layout
from components.ingestion import ingest, list_series, read_quarantine, read_volume
from components.ingestion.annotations.rt_structures import read_structures
from components.ingestion.deidentification.pseudonyms import DEMO_KEY
from components.ingestion.formats.orientation import LPS_TO_RAS
from components.ingestion.volume import Volume
from tests.helpers import dicom_files
from tests.helpers.real_world.dicom_series import edit

CARD = DatasetCard(
    id="made-up",
    name="Made up",
    rights="none",
    formats=("DICOM",),
    synthetic=True,
    label_map={1: "tumour", 2: "Oedema"},
    layout=Layout(ignored_structures=("couch*",)),
)
SHAPE, PIXEL, STEP = (5, 40, 48), (0.9, 1.1), 4.0


def outline(
    rows_and_columns: NDArray[np.float64], number: float, orientation: tuple[float, ...] = dicom_files.AXIAL
) -> NDArray[np.float64]:
    """Points (rows, columns) of a slice of :func:`dicom_files.write_series` in patient coordinates, mm LPS+."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    first = np.array([-30.0, -20, 10]) + np.cross(row, column) * STEP * number
    return first + rows_and_columns[:, :1] * PIXEL[0] * column + rows_and_columns[:, 1:] * PIXEL[1] * row


def square(low: float, high: float) -> NDArray[np.float64]:
    return np.array([[low, low], [low, high], [high, high], [high, low]])


def taken(folder: Path, card: DatasetCard = CARD) -> list[Volume]:
    ingest(card, folder / "source", folder / "data", DEMO_KEY)
    return [read_volume(folder / "data", one, card) for one in list_series(folder / "data", card.id)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Create a folder with a series of images."""
    dicom_files.write_series(tmp_path / "source", "image", dicom_files.random_pixels(*SHAPE))
    return tmp_path / "source"


@pytest.mark.parametrize("orientation", [dicom_files.AXIAL, dicom_files.SAGITTAL, dicom_files.CORONAL, dicom_files.OBLIQUE])
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_circles_around_an_ellipsoid_label_the_pixels_within_it(tmp_path: Path, orientation: tuple[float, ...], form: str) -> None:
    voxels = np.random.default_rng(0).permutation(int(np.prod(SHAPE))).reshape(SHAPE).astype(np.uint16)  # each value once
    if form == "classic":
        dicom_files.write_series(tmp_path / "source", "image", voxels, orientation)
    else:
        frames = [{"plane": plane, "offset": STEP * number} for number, plane in enumerate(voxels)]
        dicom_files.write_enhanced(tmp_path / "source" / "e.dcm", frames, orientation)
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    middle, radius = np.array([19.3, 22.6]), 14.0  # pixels; flatter along rows
    radii = [radius * np.sqrt(1 - ((number - 2) / 2.5) ** 2) for number in range(SHAPE[0])]
    drawn = [
        outline(middle + one * np.stack([0.7 * np.sin(angles), np.cos(angles)], axis=1), number, orientation)
        for number, one in enumerate(radii)
    ]
    dicom_files.write_structure_set(tmp_path / "source" / "rt.dcm", {"Tumour": drawn})
    (volume,) = taken(tmp_path)
    assert volume.labels is not None and set(np.unique(volume.labels)) == {0, 1}
    place = volume.labels if np.array_equal(volume.voxels, voxels) else _as_made(volume, voxels)
    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    far = np.hypot((rows - middle[0]) / 0.7, columns - middle[1])
    for number, one in enumerate(radii):
        np.testing.assert_array_equal(place[number][np.abs(far - one) > 0.01], (far < one)[np.abs(far - one) > 0.01])


def _as_made(volume: Volume, voxels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Labels of a volume that was turned, in the order of slices, rows and columns of the file."""
    assert volume.labels is not None
    value_at = dict(zip(volume.voxels.astype(np.uint16).ravel().tolist(), volume.labels.ravel().tolist(), strict=True))
    return np.vectorize(value_at.get)(voxels)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(0, 2**32 - 1), st.permutations([0, 1, 2]), st.sampled_from(["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"]))
def test_contours_of_any_mask_reproduce_the_mask(tmp_path: Path, seed: int, axes: list[int], kind: str) -> None:
    """Islands, holes, islands in holes; slices along any axis of the grid."""
    rng = np.random.default_rng(seed)
    mask = gaussian_filter(rng.standard_normal((4, 14, 17)), (0, 1.2, 1.2)) > 0.05
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0] * rng.uniform(0.4, 5, 3)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    to_lps = LPS_TO_RAS @ affine
    drawn = [
        np.insert(points - 1, 0, number, axis=1) @ to_lps[:3, :3].T + to_lps[:3, 3]
        for number, plane in enumerate(mask)
        for points in find_contours(np.pad(plane, 1).astype(float), 0.5)
    ]
    path = dicom_files.write_structure_set(tmp_path / "rt.dcm", {"tumour": drawn}, kind=kind)
    columns = [*axes, 3]
    labels = read_structures(path, affine[:, columns], tuple(np.array(mask.shape)[axes]), {7: "tumour"})
    np.testing.assert_array_equal(labels, 7 * mask.transpose(axes))


def test_a_keyhole_and_a_nested_contour_are_the_same_hole(source: Path) -> None:
    keyhole = np.concatenate([square(5, 25)[:1], square(5, 25)[1:], square(5, 25)[:1], square(10.5, 20.5), square(10.5, 20.5)[:1]])
    nested = [outline(square(5, 25), 2), outline(square(10.5, 20.5), 2)]
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(keyhole, 1), *nested]})
    (volume,) = taken(source.parent)
    expected = np.zeros(SHAPE[1:], dtype=np.uint8)
    expected[5:26, 5:26] = 1
    expected[11:21, 11:21] = 0
    assert volume.labels is not None
    np.testing.assert_array_equal(volume.labels[2], expected)
    np.testing.assert_array_equal(volume.labels[1], expected)
    assert not volume.labels[[0, 3, 4]].any()


def test_adjacent_structures_may_share_a_contour(source: Path) -> None:
    core, rim = outline(square(10, 20), 2), [outline(square(5, 25), 2), outline(square(10, 20), 2)]
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [core], "OEDEMA": rim, "Couch 1": [outline(square(0, 30), 2)]})
    (volume,) = taken(source.parent)
    assert volume.labels is not None
    assert int((volume.labels == 1).sum()) == 9**2 and int((volume.labels > 0).sum()) == 21**2


def test_only_the_referenced_series_is_labeled(source: Path) -> None:
    dicom_files.write_series(source, "other", dicom_files.random_pixels(*SHAPE, seed=1), SeriesInstanceUID="1.2.3.4", EchoTime=80)
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(square(5, 9), 2)]}, series_uid="1.2.3.4")
    found = {one.acquisition.echo_time_ms: one.labels is not None for one in taken(source.parent)}
    assert found == {12.0: False, 80.0: True}
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(square(5, 9), 2)]}, series_uid=None)
    assert all(one.labels is not None for one in taken(source.parent))  # without such a reference, all in its frame


@dataclass(frozen=True)
class Wrong:
    """A structure set that cannot label the image, with the expected reason."""

    reason: str
    outlines: NDArray[np.float64]
    name: str = "tumour"
    more: dict[str, Any] | None = None


WRONG = {
    "between two slices": Wrong("contours are 0.50 of the slice spacing off their slice", outline(square(5, 9), 1.5)),
    "tilted": Wrong("of the slice spacing off their slice", outline(square(5, 9), 2) + np.outer([0, 0, 1, 1], [0, 0, 2.0])),
    "above the image": Wrong("contours beyond the image", outline(square(5, 9), 7)),
    "beside the image": Wrong("contours beyond the image", outline(square(30, 60), 2)),
    "another frame": Wrong("in another frame of reference than its image", square(5, 9), more={"frame_uid": "1.2.9"}),
    "another series": Wrong("a structure set of no image here", square(5, 9), more={"series_uid": "1.2.9"}),
    "another patient": Wrong("a structure set of no image here", square(5, 9), more={"PatientID": "patient-2"}),
    "an open line": Wrong("structure 1 has an open contour", outline(square(5, 9), 2), more={"kind": "OPEN_PLANAR"}),
    "a name that the card lacks": Wrong(
        "the name of structure 1 is not in the label map", outline(square(5, 9), 2), name="Zwetschge"
    ),
    "nothing left": Wrong("no structure with contours is in the label map", outline(square(5, 9), 2), name="couch"),
}


def test_a_marker_beside_an_outline_labels_nothing_and_is_told(source: Path) -> None:
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(square(5, 9), 2), outline(np.array([[20.0, 20]]), 3)]})
    edit(source / "rt.dcm", lambda item: setattr(item.ROIContourSequence[0].ContourSequence[1], "ContourGeometricType", "POINT"))
    report = ingest(CARD, source, source.parent / "data", DEMO_KEY)
    assert [item.text for item in report.notices] == ["structures with 1 contours of a single point, which label nothing"]
    (volume,) = taken(source.parent)
    assert volume.labels is not None and volume.labels.sum() == 25 and not report.quarantined


def test_outlines_that_a_tool_interpolated_are_outlines(source: Path) -> None:
    dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(square(5, 9), 2)]}, kind="INTERPOLATED_PLANAR")
    (volume,) = taken(source.parent)
    assert volume.labels is not None and volume.labels.sum() == 25


@pytest.mark.parametrize("case", WRONG)
def test_an_unusable_structure_set_is_rejected_with_a_reason_and_the_image_is_kept(case: str, source: Path) -> None:
    wrong = WRONG[case]
    points = wrong.outlines if wrong.outlines.shape[1] == 3 else outline(wrong.outlines, 2)
    dicom_files.write_structure_set(source / "rt.dcm", {wrong.name: [points]}, **(wrong.more or {}))
    (volume,) = taken(source.parent)
    assert volume.labels is None
    (entry,) = read_quarantine(source.parent / "data", CARD.id)
    assert entry.kind == "label" and wrong.reason in entry.reason and entry.remedy


def _overlapping(path: Path) -> None:
    dicom_files.write_structure_set(path, {"tumour": [outline(square(5, 9), 2)], "oedema": [outline(square(6, 20), 2)]})


def _in_two_frames(path: Path) -> None:
    dicom_files.write_structure_set(path, {"tumour": [outline(square(5, 9), 2)], "oedema": [outline(square(15, 20), 2)]})
    image = pydicom.dcmread(path)
    image.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.9"
    image.save_as(path)


def _empty(path: Path) -> None:
    dicom_files.write_structure_set(path, {})


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_overlapping, "structures overlap"),
        (_in_two_frames, "structures in 2 frames of reference"),
        (_empty, "a structure set without contours"),
    ],
)
def test_structures_that_form_no_label_map_are_rejected(make: Callable[[Path], None], reason: str, source: Path) -> None:
    make(source / "rt.dcm")
    (volume,) = taken(source.parent)
    assert volume.labels is None
    assert [one.reason for one in read_quarantine(source.parent / "data", CARD.id)] == [reason]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_structure_set_loses_only_its_labels(source: Path, data: st.DataObject) -> None:
    path = dicom_files.write_structure_set(source / "rt.dcm", {"tumour": [outline(square(5, 25), 2), outline(square(10, 20), 2)]})
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(132, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(132, len(content)))])
    (volume,) = taken(source.parent)
    listed = read_quarantine(source.parent / "data", CARD.id)
    assert (volume.labels is None) == bool(listed) and all(one.reason and one.remedy for one in listed)
