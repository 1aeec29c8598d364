"""Samples: no rebuild of an existing folder, rejection of unknown names and sizes."""

from pathlib import Path

import pytest

from components.catalog import load_card
from components.errors import BadInput
from components.samples import build_sample


def test_a_folder_of_another_origin_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "existing").mkdir()
    (tmp_path / "existing" / "scan.nii").write_bytes(b"mine")
    build_sample(load_card("synthetic-brain-nifti"), tmp_path / "existing")
    assert [path.name for path in (tmp_path / "existing").iterdir()] == ["scan.nii"]


def test_only_samples_can_be_built(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="datasets: path"):
        build_sample(load_card("fastmri-knee"), tmp_path / "x")


def test_only_a_generated_dataset_has_a_choice_of_patients(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"remove datasets\.patients"):
        build_sample(load_card("icbm152-2009"), tmp_path / "x", patients=3)
