"""The store returns the stored values, slice by slice, detects every damage, and writes the same bytes every time."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.curation.store import VolumeStore
from components.errors import BadInput

NAME = "3fa2" + "0" * 28


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).gamma(2, 0.3, size=(5, 32, 32)).astype(np.float32)


def test_voxels_are_read_as_float32_within_half_precision(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    read = store.read(NAME)
    assert read.dtype == np.float32
    assert np.all(np.abs(read - voxels) <= 2.0**-11 * np.abs(voxels))


def test_labels_and_kspace_are_read_exactly(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    labels = (voxels > 0.5).astype(np.uint8) * 255
    kspace = (voxels + 1j * voxels[::-1]).astype(np.complex64)
    store.write(NAME, "labels", labels)
    store.write(NAME, "kspace", kspace)
    np.testing.assert_array_equal(store.read(NAME, "labels"), labels)
    np.testing.assert_array_equal(store.read(NAME, "kspace"), kspace)


def test_one_slice_is_one_chunk_and_slices_agree_with_the_whole_array(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    assert blosc2.open(str(store.path(NAME, "voxels"))).chunks == (1, 32, 32)
    whole = store.read(NAME)
    np.testing.assert_array_equal(store.read(NAME, index=3), whole[3])
    np.testing.assert_array_equal(store.read(NAME, index=slice(1, 4)), whole[1:4])


def test_the_same_values_give_the_same_bytes(tmp_path: Path, voxels: np.ndarray) -> None:
    first, second = VolumeStore(tmp_path / "first"), VolumeStore(tmp_path / "second")
    for store in (first, second):
        store.write(NAME, "voxels", voxels)
    assert first.path(NAME, "voxels").read_bytes() == second.path(NAME, "voxels").read_bytes()


def test_values_beyond_half_precision_are_clipped_to_finite_values(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", np.full((1, 32, 32), 1e9))
    assert np.isfinite(store.read(NAME)).all()


def test_files_are_two_folders_deep_and_removed_with_their_volume(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.b2nd")] == [f"3f/a2/{NAME}.voxels.b2nd"]
    assert list(store.volume_ids()) == [NAME]
    store.remove(NAME)
    assert list(store.volume_ids()) == []
    with pytest.raises(BadInput, match="no voxels of this volume"):
        store.read(NAME)


def test_arrays_without_a_slice_axis_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="2 axes"):
        VolumeStore(tmp_path).write(NAME, "voxels", np.zeros((32, 32)))


def test_files_that_a_killed_run_left_are_listed_and_removed(tmp_path: Path, voxels: np.ndarray) -> None:
    """Labels without voxels, a sidecar, a temporary file: each may contain data of a withdrawn patient."""
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


def test_all_coils_of_a_slice_are_one_chunk(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    kspace = np.stack([voxels, 1j * voxels, voxels + 1j], axis=1).astype(np.complex64)
    store.write(NAME, "kspace", kspace)
    assert store.shape(NAME, "kspace") == (5, 3, 32, 32)
    np.testing.assert_array_equal(store.read(NAME, "kspace", 4), kspace[4])


@given(st.lists(st.integers(1, 9), min_size=3, max_size=4), st.data())
@settings(max_examples=25)
def test_any_range_of_slices_agrees_with_the_whole_array(shape: list[int], data: st.DataObject) -> None:
    values = np.random.default_rng(1).integers(0, 255, shape, dtype=np.uint8)
    with TemporaryDirectory() as folder:
        store = VolumeStore(Path(folder))
        store.write(NAME, "labels", values)
        index = data.draw(st.one_of(st.integers(-shape[0], shape[0] - 1), st.slices(shape[0])))
        np.testing.assert_array_equal(store.read(NAME, "labels", index), values[index])


def test_a_missing_slice_is_reported_by_its_index(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    store.write(NAME, "voxels", voxels)
    with pytest.raises(BadInput, match="no slice 5 of 5"):
        store.read(NAME, index=5)


def test_no_flipped_bit_changes_a_value_and_every_flip_is_found(tmp_path: Path) -> None:
    """Flip a bit of each byte in turn: a read returns the exact values or reports the damage, and verification finds it."""
    store = VolumeStore(tmp_path)
    values = np.random.default_rng(2).gamma(2, 0.3, size=(4, 8, 8)).astype(np.float32)
    values[2] = 0  # blosc2 stores a constant slice as a flag, not as bytes
    md5 = store.write(NAME, "voxels", values)
    path, truth = store.path(NAME, "voxels"), store.read(NAME)
    intact = path.read_bytes()
    assert hashlib.md5(intact).hexdigest() == md5 and store.find_faults(NAME, "voxels", md5) == []
    refused = 0
    for position in range(len(intact)):
        broken = bytearray(intact)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        try:
            np.testing.assert_array_equal(store.read(NAME), truth)
        except BadInput as error:
            assert "damaged" in error.what and error.remedy.startswith("run omnimri data verify --repair")
            refused += 1
        if position % 8 == 0:
            assert store.find_faults(NAME, "voxels", md5)
    assert refused > len(intact) // 2  # most bytes of a file are voxels


def test_a_damaged_slice_is_reported_and_the_others_can_still_be_read(tmp_path: Path, voxels: np.ndarray) -> None:
    store = VolumeStore(tmp_path)
    md5 = store.write(NAME, "voxels", voxels)
    path, whole = store.path(NAME, "voxels"), store.read(NAME)
    opened = blosc2.open(str(path))
    chunk = opened.schunk.get_chunk(3)
    content = bytearray(path.read_bytes())
    content[content.index(chunk) + len(chunk) // 2] ^= 0xFF
    path.write_bytes(content)
    assert store.find_faults(NAME, "voxels", md5) == ["damaged: slice 3 fails its checksum"]
    np.testing.assert_array_equal(store.read(NAME, index=2), whole[2])
    with pytest.raises(BadInput, match=f"{NAME}.voxels.b2nd: damaged: slice 3"):
        store.read(NAME)


@pytest.mark.parametrize("length", [0, 10, 100, 2000, -1])
def test_a_truncated_file_is_damaged(tmp_path: Path, voxels: np.ndarray, length: int) -> None:
    store = VolumeStore(tmp_path)
    md5 = store.write(NAME, "voxels", voxels)
    path = store.path(NAME, "voxels")
    path.write_bytes(path.read_bytes()[:length])
    assert store.find_faults(NAME, "voxels", md5)
    with pytest.raises(BadInput, match="damaged"):
        store.read(NAME)


def test_the_file_of_another_volume_is_refused(tmp_path: Path, voxels: np.ndarray) -> None:
    store, other = VolumeStore(tmp_path), "0" * 32
    store.write(NAME, "voxels", voxels)
    store.write(other, "voxels", voxels + 1)
    store.path(other, "voxels").replace(store.path(NAME, "voxels"))
    with pytest.raises(BadInput, match="belongs to another array"):
        store.read(NAME)
