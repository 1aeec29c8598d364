"""Samples are the same bytes every time, and refuse to be what they are not."""

import hashlib
from pathlib import Path

import pytest

from components.errors import BadInput
from components.samples import SYNTHETIC, build


def _sums(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*.*"))}


@pytest.mark.parametrize("sample", SYNTHETIC)
def test_the_same_bytes_come_out_twice(tmp_path: Path, sample: str) -> None:
    first, second = (build(sample, tmp_path / name, patients=1) for name in ("a", "b"))
    assert _sums(first) == _sums(second)


def test_what_is_there_is_not_built_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert build("synthetic-brain-nifti", tmp_path / "there") == tmp_path / "there"
    assert not list((tmp_path / "there").iterdir())


def test_only_samples_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="datasets: path"):
        build("fastmri-knee", tmp_path / "x")
