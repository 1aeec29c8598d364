"""Tiles of a resampled volume cover its foreground and blend to one image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from scipy import ndimage

from components.inference.sliding_window import ResampledVolume, gaussian_weights
from components.ingestion.volume import Acquisition, Volume
from tests.helpers.corpora import tiny_volume


def _wide(extent: int, *lesions: tuple[int, int]) -> Volume:
    """Return three slices of ``extent`` pixels of the network's size, dark except for bright squares of eight pixels."""
    voxels = np.zeros((3, extent, extent), np.float32)
    for row, column in lesions:
        voxels[:, row : row + 8, column : column + 8] = 100
    return Volume(voxels, np.diag([5.0, 6.75, 6.75, 1.0]), Acquisition())


def test_resampling_to_the_models_grid_and_back_is_the_identity_for_equal_grids() -> None:
    resampled = ResampledVolume.from_volume(tiny_volume(1, matrix=32), 32, 6.75)
    assert resampled.corners == ((0, 0),)
    np.testing.assert_allclose(resampled.to_source_grid(resampled.voxels), resampled.voxels, atol=1e-6)


@settings(max_examples=50)
@given(st.integers(24, 90), st.lists(st.tuples(st.integers(0, 82), st.integers(0, 82)), min_size=1, max_size=3))
def test_tiles_cover_all_foreground(extent: int, positions: list[tuple[int, int]]) -> None:
    """Every bright pixel is in a tile, for every size of the slice and position of the object."""
    volume = _wide(extent, *[(min(row, extent - 8), min(column, extent - 8)) for row, column in positions])
    resampled = ResampledVolume.from_volume(volume, 32, 6.75)
    covered = np.zeros(resampled.voxels.shape, bool)
    for tile in resampled.tiles(range(3)):
        assert resampled.crop(tile).shape == (32, 32)
        covered[tile.index, tile.row : tile.row + 32, tile.column : tile.column + 32] = True
    assert covered[resampled.voxels > 0.1].all()


@pytest.mark.parametrize("position", [(36, 36), (2, 70)])
def test_a_small_object_is_in_one_tile(position: tuple[int, int]) -> None:
    resampled = ResampledVolume.from_volume(_wide(80, position), 32, 6.75)
    assert len(resampled.corners) == 1
    if position == (36, 36):
        assert resampled.corners == ((24, 24),)  # the middle, as in training


def test_equal_overlapping_tiles_blend_to_their_value() -> None:
    resampled = ResampledVolume.from_volume(_wide(80, (0, 0), (72, 72)), 32, 6.75)
    tiles = resampled.tiles(range(3))
    assert len(resampled.corners) == 16
    values = np.stack([resampled.crop(tile)[None] for tile in tiles])
    np.testing.assert_allclose(resampled.blend(tiles, values)[0], resampled.voxels, atol=1e-5)


@pytest.mark.parametrize("side", [2, 32, 97])
def test_weights_of_overlapping_tiles_are_those_of_monai(side: int) -> None:
    np.testing.assert_allclose(gaussian_weights(side), compute_importance_map((side, side), mode="gaussian"), atol=1e-6)


@settings(max_examples=50)
@given(st.integers(5, 70), st.integers(5, 70), st.floats(0.8, 9.0), st.floats(0.8, 9.0))
def test_the_way_back_to_the_source_is_the_linear_interpolation_of_scipy(
    rows: int, columns: int, row_mm: float, column_mm: float
) -> None:
    voxels = np.random.default_rng(rows).random((3, rows, columns), dtype=np.float32)
    resampled = ResampledVolume.from_volume(Volume(voxels, np.diag([5.0, row_mm, column_mm, 1.0]), Acquisition()), 32, 6.75)
    scale = np.array([1.0, *(1 / s for s in resampled.grid.scale)])
    offset = np.array([0.0, *(-o / s for o, s in zip(resampled.grid.offset, resampled.grid.scale, strict=True))])
    expected = ndimage.affine_transform(resampled.voxels, scale, offset, voxels.shape, order=1, mode="constant")
    np.testing.assert_allclose(resampled.to_source_grid(resampled.voxels), expected, atol=1e-5)


def test_slices_without_tissue_have_no_tile_that_shows_some() -> None:
    volume = _wide(32, (8, 8))
    volume.voxels[1] = 0
    resampled = ResampledVolume.from_volume(volume, 32, 6.75)
    assert [tile.index for tile in resampled.tiles_with_tissue(range(3))] == [0, 2]
    empty = ResampledVolume.from_volume(Volume(np.zeros_like(volume.voxels), volume.affine, Acquisition()), 32, 6.75)
    assert len(empty.tiles_with_tissue(range(3))) == 3
