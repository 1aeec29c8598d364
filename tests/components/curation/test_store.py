"""The store gives back what was put in, one slice at a time, in the same bytes every time."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np
import pytest

from components.curation.store import VolumeStore
from components.errors import BadInput

NAME = "3fa2" + "0" * 28


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).gamma(2, 0.3, size=(5, 32, 32)).astype(np.float32)


def test_voxels_come_back_as_float32_within_half_precision(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    read = store.read(NAME)
    assert read.dtype == np.float32
    assert np.all(np.abs(read - voxels) <= 2.0**-11 * np.abs(voxels))


def test_labels_and_kspace_come_back_exactly(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    labels = (voxels > 0.5).astype(np.uint8) * 255
    kspace = (voxels + 1j * voxels[::-1]).astype(np.complex64)
    store.write(NAME, "labels", labels)
    store.write(NAME, "kspace", kspace)
    np.testing.assert_array_equal(store.read(NAME, "labels"), labels)
    np.testing.assert_array_equal(store.read(NAME, "kspace"), kspace)


def test_one_slice_is_one_chunk_and_slices_agree_with_the_whole(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    assert blosc2.open(str(store.path(NAME, "voxels"))).chunks == (1, 32, 32)
    whole = store.read(NAME)
    np.testing.assert_array_equal(store.read(NAME, index=3), whole[3])
    np.testing.assert_array_equal(store.read(NAME, index=slice(1, 4)), whole[1:4])


def test_the_same_values_give_the_same_bytes(tmp_path: Path, voxels: np.ndarray) -> None:
    one, other = VolumeStore(tmp_path / "one"), VolumeStore(tmp_path / "other")
    for store in (one, other):
        store.write(NAME, "voxels", voxels)
    assert one.path(NAME, "voxels").read_bytes() == other.path(NAME, "voxels").read_bytes()


def test_values_beyond_half_precision_are_held_finite(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", np.full((1, 32, 32), 1e9))
    assert np.isfinite(store.read(NAME)).all()


def test_files_lie_two_folders_deep_and_go_when_removed(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.b2nd")] == [f"3f/a2/{NAME}.voxels.b2nd"]
    assert list(store.volume_ids()) == [NAME]
    store.remove(NAME)
    assert list(store.volume_ids()) == []
    with pytest.raises(BadInput, match="no voxels of this volume"):
        store.read(NAME)


def test_only_slice_first_volumes_are_taken(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 axes"):
        VolumeStore(tmp_path).write(NAME, "voxels", np.zeros((32, 32)))


def test_what_a_killed_run_left_of_a_volume_is_found_and_removed(tmp_path: Path, voxels: np.ndarray) -> None:
    """Labels without voxels, a sidecar, a temporary file: each may hold a withdrawn patient."""
    store = VolumeStore(tmp_path)
    names = [digit * 32 for digit in "abc"]
    store.write(names[0], "labels", np.zeros(voxels.shape, np.uint8))
    for name, file in ((names[1], f"{names[1]}.json"), (names[2], f".{names[2]}.voxels.b2nd.0123abcd.tmp")):
        folder = store.path(name, "voxels").parent
        folder.mkdir(parents=True)
        (folder / file).touch()
    assert list(store.volume_ids()) == names
    for name in names:
        store.remove(name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
