"""A small dataset on disk for tests of ingestion and curation: brains as NIfTI with label maps."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from components.catalog import DatasetCard, load_card
from components.samples.packages import PACKAGE_SAMPLES
from tests.helpers.corpora import tiny_volume

KEY = b"a key of thirty-two bytes, no less"
GENERATED = ("synthetic-brain-dicom", "synthetic-brain-nifti", "synthetic-brain-kspace")
SAMPLES = (*PACKAGE_SAMPLES, *GENERATED)
"""Sample datasets of the demo."""


def tiny_card() -> DatasetCard:
    """Return the card of the synthetic NIfTI brains, whose layout these files have."""
    return load_card("synthetic-brain-nifti")


def write_patient(source: Path, number: int, seed: int | None = None) -> None:
    """Write patient ``sub-NN``: a T1 with sidecar and label map; every even number has a lesion. ``seed`` changes the image."""
    volume = tiny_volume(number if seed is None else seed, lesion=number % 2 == 0)
    folder, name = source / f"sub-{number:02d}" / "anat", f"sub-{number:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    assert volume.labels is not None
    labels = np.array([0, 0, 1, 2, 3], np.uint8)[volume.labels]  # the label map of the card has no fluid
    affine = np.diag([6.75, 6.75, 12.0, 1.0])
    for kind, values in (("T1w", volume.voxels.astype(np.int16)), ("dseg", labels)):
        nib.save(nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine), folder / f"{name}_{kind}.nii")  # type: ignore[attr-defined]
    fields = {"RepetitionTime": 0.6, "EchoTime": 0.012, "PatientSex": "FM"[number % 2], "PatientName": f"Doe^{number}"}
    (folder / f"{name}_T1w.json").write_text(json.dumps(fields))


def write_cohort(source: Path, patients: int) -> Path:
    """Write ``patients`` patients and return ``source``."""
    for number in range(patients):
        write_patient(source, number)
    return source


def tree(root: Path) -> dict[str, bytes]:
    """Return relative path -> bytes of every file below a folder, to compare two runs byte by byte."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
