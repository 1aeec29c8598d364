"""Commands import only what they need: the import of a large library takes longer than the work of most commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.provenance import REPOSITORY
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.real_world.nifti_files import write_nifti_file
from tests.helpers.trained import tiny_model

RUN = """
import sys
from flows.cli.main import app
app(sys.argv[1:], standalone_mode=False)
print("imported:", *sorted(name for name in sys.modules if "." not in name))
"""
LIBRARIES = {"dvc", "great_expectations", "kubernetes", "matplotlib", "mlflow", "monai", "numpy", "pandas", "prefect", "pydicom"}
LIBRARIES |= {"pynetdicom", "scipy", "torch", "transformers"}


def imported(folder: Path, *words: str) -> set[str]:
    """Return the top-level modules that a command imports."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "OMNIMRI_"))}
    environment |= {"OMNIMRI_HOME": str(folder / "home"), "OMNIMRI_DATA": str(folder / "data")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"]], ids=" ".join)
def test_help_imports_no_library(tmp_path: Path, words: list[str]) -> None:
    assert not imported(tmp_path, *words) & (LIBRARIES | {"pyarrow", "sqlalchemy"})


def test_a_prediction_imports_no_library_of_other_steps(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", tiny_corpus(tmp_path / "corpus"))
    image = write_nifti_file(tmp_path / "t1.nii.gz", tiny_volume(1).voxels.transpose(2, 1, 0))
    words = ["predict", str(image), "Is there a lesion?", "--model", str(model), "--out", str(tmp_path / "out")]
    needed = {"torch", "transformers", "numpy", "scipy", "matplotlib", "pydicom"}  # DICOM is the first format that is tried
    assert not imported(tmp_path, *words) & (LIBRARIES - needed | {"bitsandbytes", "blosc2", "deepspeed", "peft", "sqlalchemy"})
