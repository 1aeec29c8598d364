"""Sample images of the page: generated for the anatomies that a model was trained on. Nothing is downloaded."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from components.catalog import GeneratedSource
from components.errors import OmniMRIError
from components.samples.anatomies import ANATOMIES
from components.samples.cohort import forms
from components.tasks.scope import Scope
from model_core.mri_physics.sampling_masks import center_fraction_of, random_mask

RAW = {"kspace": "4x undersampled k-space", "multicoil": "4x undersampled k-space of eight coils"}
FORMS = {"nifti": "NIfTI", "dicom": "DICOM study", **RAW}
ACCELERATION, SEED, PATIENT = 4, 2026, 0


class NoSuchSample(OmniMRIError):
    """A sample that does not exist (HTTP 404)."""


def list_samples(scope: Scope | None) -> dict[str, str]:
    """Return name -> description of the samples of the anatomies in a scope; of the brain if it has none of them."""
    known = [name for name in ANATOMIES if scope is not None and name in scope.anatomies] or ["brain"]
    return {f"{name.replace(' ', '-')}-{form}": f"synthetic {name}, {text}" for name in known for form, text in FORMS.items()}


def generate_sample(name: str, scope: Scope | None) -> list[tuple[str, BinaryIO]]:
    """Return (file name, content) of a sample.

    Raises:
        NoSuchSample: no sample of this name.
    """
    if name not in list_samples(scope):
        raise NoSuchSample("no such sample", where="sample", remedy=f"one of {', '.join(list_samples(scope))}")
    anatomy, _, kind = name.rpartition("-")
    source = GeneratedSource(anatomy=anatomy.replace("-", " "), form=kind, patients=1, seed=SEED)  # type: ignore[arg-type]
    form = forms()[kind]
    with tempfile.TemporaryDirectory() as temporary:
        target = form.target(Path(temporary), PATIENT)
        if kind not in RAW:
            target.mkdir()
        form.write(ANATOMIES[source.anatomy], form.generate(source, PATIENT), target)
        if kind in RAW:
            _undersample(target)
        paths = sorted(path for path in (target.rglob("*") if target.is_dir() else [target]) if path.is_file())
        images = [path for path in paths if not path.stem.endswith("_dseg") and path.name != "SEG.dcm"]
        if kind == "nifti":
            first = next(path for path in images if path.suffix == ".nii").stem
            images = [path for path in images if path.stem == first]
        return [(path.name, io.BytesIO(path.read_bytes())) for path in images]


def _undersample(path: Path) -> None:
    """Remove the columns of the k-space that a scan with acceleration does not measure, and the reference image."""
    with h5py.File(path, "r+") as file:
        columns = random_mask(file["kspace"].shape[-1], ACCELERATION, center_fraction_of(ACCELERATION), SEED)
        file["kspace"][...] = np.where(columns, file["kspace"][...], 0)
        del file["reconstruction_rss"]
