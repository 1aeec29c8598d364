"""Samples: reproducible bytes, no rebuild of an existing folder, rejection of unknown names."""

import hashlib
from pathlib import Path

import pytest

from components.errors import BadInput
from components.samples import SYNTHETIC, build_sample


def _file_hashes(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.*"))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("sample", SYNTHETIC)
def test_two_builds_write_the_same_bytes(tmp_path: Path, sample: str) -> None:
    first, second = (build_sample(sample, tmp_path / name, patients=1) for name in ("a", "b"))
    assert _file_hashes(first) == _file_hashes(second)


def test_an_existing_folder_is_not_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "existing").mkdir()
    assert build_sample("synthetic-brain-nifti", tmp_path / "existing") == tmp_path / "existing"
    assert not list((tmp_path / "existing").iterdir())


def test_only_samples_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="datasets: path"):
        build_sample("fastmri-knee", tmp_path / "x")
