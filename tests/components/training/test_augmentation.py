"""Augmentation: labels and boxes move with their image; contrast changes only the image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, rotate
from skimage.exposure import adjust_gamma

from components.training.augmentation import ANGLE, CONTRAST, SCALE, SHIFT, AffineParams, Contrast, apply_affine_batch
from model_core.boxes import GRID, TextBox

SIDE = 96
shifts = st.floats(-SHIFT, SHIFT)
upright = st.builds(AffineParams, st.floats(1 - SCALE, 1 + SCALE), shifts, shifts)
movements = st.builds(AffineParams, st.floats(1 - SCALE, 1 + SCALE), shifts, shifts, st.floats(-ANGLE, ANGLE))
edges = st.integers(20, 60)


def _box(row: int, column: int, rows: int, columns: int) -> TextBox:
    at = [round(edge * GRID / SIDE) for edge in (row, column, row + rows, column + columns)]
    return TextBox("lesion", *at)


@given(movement=upright, row=edges, column=edges, rows=st.integers(4, 14), columns=st.integers(4, 14))
def test_a_box_stays_around_its_lesion(movement: AffineParams, row: int, column: int, rows: int, columns: int) -> None:
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[row : row + rows, column : column + columns] = 1
    (box,) = movement.transform_boxes([_box(row, column, rows, columns)])
    down, right = np.nonzero(movement.apply(mask, nearest=True))
    found = [down.min(), right.min(), down.max() + 1, right.max() + 1]
    assert [edge * SIDE / GRID for edge in (box.row0, box.col0, box.row1, box.col1)] == pytest.approx(found, abs=1)


@given(movement=movements)
def test_a_mask_stays_a_mask(movement: AffineParams) -> None:
    mask = (np.random.default_rng(0).random((SIDE, SIDE)) > 0.5).astype(np.float32)
    assert set(np.unique(movement.apply(mask, nearest=True))) <= {0, 1}


def test_no_movement_changes_nothing() -> None:
    image = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    np.testing.assert_allclose(AffineParams().apply(image), image, atol=1e-5)
    assert AffineParams().transform_boxes([_box(30, 40, 10, 10)]) == [_box(30, 40, 10, 10)]


def test_no_box_leaves_the_image() -> None:
    border, middle = _box(0, 40, 10, 10), _box(40, 40, 10, 10)
    up = AffineParams(1.0, -0.05, 0.0)
    assert up.keeping_inside([middle]) == up and up.keeping_inside([]) == up
    assert up.keeping_inside([middle, border]) == AffineParams()


def test_a_turned_image_is_that_of_scipy() -> None:
    image = gaussian_filter(np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32), 3)
    turned = rotate(image, 10, reshape=False, order=1)
    inside = np.s_[20:-20, 20:-20]
    np.testing.assert_allclose(AffineParams(degrees=10.0).apply(image)[inside], turned[inside], atol=1e-5)


def test_each_image_has_its_own_movement() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((3, SIDE, SIDE - 16)).astype(np.float32)
    three = [AffineParams.sample(rng) for _ in images]
    alone = [movement.apply(image) for movement, image in zip(three, images, strict=True)]
    np.testing.assert_array_equal(apply_affine_batch(images, three), alone)


def test_boxes_are_not_turned() -> None:
    assert AffineParams(1.1, 0.01, 0.02, 10.0).keeping_inside([_box(40, 40, 10, 10)]) == AffineParams(1.1, 0.01, 0.02)


def test_contrast_is_that_of_scikit_image() -> None:
    image = np.random.default_rng(0).random((SIDE, SIDE)).astype(np.float32)
    image[:30] = 0
    changed = Contrast(1.05, 0.93).apply(image)
    assert changed.dtype == np.float32
    np.testing.assert_allclose(changed, adjust_gamma(image, 0.93, 1.05), rtol=1e-5)


@given(seed=st.integers(0, 2**32))
def test_contrast_changes_little_and_shows_nothing_below_zero(seed: int) -> None:
    contrast = Contrast.sample(np.random.default_rng(seed))
    assert abs(contrast.gain - 1) <= CONTRAST and abs(contrast.gamma - 1) <= CONTRAST
    assert contrast.apply(np.array([-0.5, 0.0, 1.0], np.float32)).tolist() == pytest.approx([0, 0, contrast.gain])


def test_what_is_no_number_does_not_become_one() -> None:
    image = np.full((SIDE, SIDE), np.nan, np.float32)
    assert np.isnan(Contrast(1.0, 1.1).apply(image)).all() and np.isnan(AffineParams().apply(image)).all()
