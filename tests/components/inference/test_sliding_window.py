"""Tiles of a resampled volume cover its foreground and blend to one image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.inference.sliding_window import ResampledVolume
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


@settings(max_examples=50, deadline=None)
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
