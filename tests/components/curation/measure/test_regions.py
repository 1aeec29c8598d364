"""Measurements from labels agree with scipy and the geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from components.curation.measure.regions import REACH_MM, LesionPart, counted_lesions, locate_structures, split_lesions
from components.curation.measure.volume_facts import measure_structures
from components.curation.table_rows import MeasureRecord


def test_measurements_agree_with_scipy_and_the_geometry() -> None:
    names = {3: "white matter", 4: "lesion"}

    def measure(voxels: np.ndarray, labels: np.ndarray, midline_in_view: bool = True) -> list[MeasureRecord]:
        return measure_structures(voxels, labels, locate_structures(labels, names, affine), names, affine, midline_in_view)

    labels = np.zeros((10, 40, 40), dtype=np.uint8)
    labels[1:9, 5:35, 5:35] = 3
    labels[3:6, 10:16, 8:12] = 4  # W increases toward the patient's left: small indices are on the right
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    voxels = np.where(labels == 4, 1.5, np.where(labels == 3, 1.0, 0.0)).astype(np.float32)
    tissue, lesion = measure(voxels, labels)
    assert lesion.volume_ml == pytest.approx((labels == 4).sum() * 16 / 1000) and lesion.size_mm == 12.0
    assert (lesion.side, lesion.inside, lesion.count, lesion.signal) == ("right", "white matter", 1, 1.5)
    assert tissue.signal is None and tissue.side is None and ndimage.label(labels == 4)[1] == lesion.count
    assert measure(voxels[..., ::-1], labels[..., ::-1])[1].side == "left"
    assert measure(voxels, labels, midline_in_view=False)[1].side is None
    both = labels | np.ascontiguousarray(labels[..., ::-1])
    assert measure(voxels, np.where(both == 7, 4, both).astype(np.uint8))[1].side == "bilateral"


def _dilate_by_offsets(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """Dilate by a ball of REACH_MM, written out: a pixel is set if one of the mask lies within this distance."""
    reach = [int(REACH_MM / step) for step in spacing_mm]
    padded = np.pad(mask, [(r, r) for r in reach])
    dilated = np.zeros_like(mask)
    for offset in np.ndindex(*(2 * r + 1 for r in reach)):
        if np.hypot.reduce([(o - r) * step for o, r, step in zip(offset, reach, spacing_mm, strict=True)]) <= REACH_MM:
            dilated |= padded[tuple(slice(o, o + size) for o, size in zip(offset, mask.shape, strict=True))]
    return dilated


@given(
    mask=arrays(np.bool_, (3, 9, 11), elements=st.booleans(), fill=st.just(False)),
    spacing_mm=st.sampled_from([(6.0, 2.25, 2.25), (1.0, 1.0, 1.0), (3.0, 0.8, 1.6)]),
)
def test_lesions_are_counted_as_brats_counts_them(mask: np.ndarray, spacing_mm: tuple[float, ...]) -> None:
    """The mask is dilated, its connected components are the lesions, and their voxels are those of the mask (BraTS 2023)."""
    dilated, _ = ndimage.label(_dilate_by_offsets(mask, spacing_mm), np.ones((3, 3, 3)))
    expected = {tuple(np.flatnonzero(mask & (dilated == number))) for number in np.unique(dilated[mask])}
    found = set()
    for part in split_lesions(mask, spacing_mm):
        inside = np.zeros_like(mask)
        inside[part.box] = part.inside
        found.add(tuple(np.flatnonzero(inside)))
    assert found == expected


def _boxes(parts: list[LesionPart]) -> list[tuple[tuple[int, int], ...]]:
    return [tuple((edge.start, edge.stop) for edge in part.box) for part in parts]


def test_a_speck_counts_only_where_there_is_no_lesion() -> None:
    mask = np.zeros((30, 30), np.bool_)
    mask[5:12, 5:12] = mask[8, 14] = True  # a gap of two pixels of 2.25 mm
    mask[20, 2] = mask[20, 5] = True  # joined, but each a pixel of less than 3 mm
    mask[26, 20:22] = True
    parts = split_lesions(mask, (2.25, 2.25))
    assert _boxes(parts) == [((5, 12), (5, 15)), ((20, 21), (2, 6)), ((26, 27), (20, 22))]
    assert [part.is_speck for part in parts] == [False, True, False]
    assert _boxes(counted_lesions(parts)) == [((5, 12), (5, 15)), ((26, 27), (20, 22))]
    assert _boxes(counted_lesions(parts[1:2])) == [((20, 21), (2, 6))]  # nothing else is there
    assert split_lesions(np.zeros((3, 4, 5), np.bool_), (1, 1, 1)) == counted_lesions([]) == []


def test_lesions_are_in_the_order_of_their_first_pixels() -> None:
    mask = np.zeros((12, 20), np.bool_)
    mask[0, 12], mask[1, 2:5], mask[3, 12:16] = True, True, True
    assert [box[1] for box in _boxes(split_lesions(mask, (1.0, 1.0)))] == [(12, 16), (2, 5)]


@pytest.mark.parametrize("spacing", [1.0, 1 - 1e-16, 1 + 1e-15])
def test_roundings_of_a_spacing_decide_nothing(spacing: float) -> None:
    mask = np.zeros((1, 12), np.bool_)
    mask[0, :3] = mask[0, 10:] = True
    assert [part.is_speck for part in split_lesions(mask, (spacing, spacing))] == [False, True]
    near = np.array([[True, False, False, True]])  # surroundings of 3 mm meet where a pixel has 3 mm
    assert len(split_lesions(near, (3 * spacing, 3 * spacing))) == 1


def test_a_label_of_specks_alone_is_one_small_lesion() -> None:
    labels = np.zeros((4, 30, 30), np.uint8)
    labels[1:3, 5, 5] = labels[1, 20, 20] = 4
    affine = np.array([[0, 0, -2.0, 40], [0, -2.0, 0, 40], [4.0, 0, 0, -20], [0, 0, 0, 1]])
    names = {4: "lesion"}
    regions = locate_structures(labels, names, affine)
    [measured] = measure_structures(labels.astype(np.float32), labels, regions, names, affine, True)
    assert (measured.count, measured.size_mm) == (1, 8.0) and measured.volume_ml == pytest.approx(3 * 16 / 1000)
