"""An installed wheel works outside of a checkout: its data files are found, and its state lies in the user's data folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from components.provenance import REPOSITORY
from tests.helpers.corpora import tiny_corpus
from tests.helpers.datasets import write_cohort
from tests.helpers.trained import tiny_model


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the tracked files: a ``build/`` folder of earlier days must not reach it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if not name.startswith(("tests/", "docs/", "benchmarks/")) and (REPOSITORY / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, capture_output=True)
    (wheel,) = folder.glob("omnimri-*.whl")
    return wheel


class Installation:
    """A virtual environment with the wheel, and a home folder that nothing has been written to."""

    def __init__(self, folder: Path, *requirements: str) -> None:
        self.folder, self.home = folder, folder / "home"
        self.home.mkdir()
        self.bin = folder / "venv" / "bin"
        subprocess.run([self.bin / "python", "-m", "pip", "install", "--quiet", *requirements], check=True, capture_output=True)

    def omnimri(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command in an empty working folder."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("OMNIMRI", "PYTHON", "MLFLOW", "XDG"))
        }
        environment |= {"HOME": str(self.home), "COLUMNS": "200"}
        done = subprocess.run([self.bin / "omnimri", *words], cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The wheel in a new environment, its dependencies from the one that runs the tests (``.pth``), not OmniMRI itself."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    site_packages = next((folder / "venv" / "lib").glob("python3.*/site-packages"))
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installation(folder, "--no-deps", "--no-index", str(wheel))


def run_first_commands(installed: Installation, wheel_name: str, tmp_path: Path) -> None:
    """Run the first commands of a new user: doctor, catalog list, ingest of a NIfTI folder, predict with a model folder."""
    assert installed.omnimri("--version").stdout.strip() in wheel_name
    findings = json.loads(installed.omnimri("doctor", "--json").stdout)["findings"]
    assert {finding["name"]: finding["state"] for finding in findings}["packages"] == "ok"
    assert "synthetic-brain-nifti" in installed.omnimri("catalog", "list").stdout
    images = write_cohort(tmp_path / "images", 2)
    installed.omnimri("ingest", "synthetic-brain-nifti", str(images))
    state = installed.home / ".local/share/omnimri"
    assert (state / "data" / "synthetic-brain-nifti" / "manifest.json").is_file() and (state / "data.dvc").is_file()
    model = tiny_model(tmp_path / "model", tiny_corpus(tmp_path / "corpus"))
    image = next(images.rglob("*_T1w.nii"))
    done = installed.omnimri(
        "predict", str(image), "Write a report for this MRI.", "--model", str(model), "--json", "-o", str(tmp_path / "out")
    )
    assert json.loads(done.stdout)


def test_the_wheel_works_outside_of_a_checkout(installed: Installation, wheel: Path, tmp_path: Path) -> None:
    run_first_commands(installed, wheel.name, tmp_path)


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Every dependency comes from the package index, as declared in the wheel; a missing declaration shows only here."""
    venv.create(tmp_path / "venv", with_pip=True)
    lock = REPOSITORY / "constraints.txt"
    torch = next(line for line in lock.read_text().splitlines() if line.startswith("torch=="))
    installed = Installation(tmp_path, torch, str(wheel), "--constraint", str(lock))
    run_first_commands(installed, wheel.name, tmp_path)
