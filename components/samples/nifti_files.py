"""Write the synthetic cohort as NIfTI with JSON sidecars and label maps, with BIDS names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from components.samples.cohort import Brain, Grid, generate_brain, simulate_magnitude

GRID = Grid(slices=20, pixels=108, slice_mm=6.0, pixel_mm=2.0)
COHORT = 1
TIMES = {"T1-weighted": ("T1w", 500.0, 12.0), "T2-weighted": ("T2w", 4500.0, 95.0)}
"""Sequence -> (BIDS suffix, repetition time ms, echo time ms)."""


def _save(path: Path, values: np.ndarray[Any, Any]) -> None:
    """Write (D, H, W) as NIfTI in its usual axis order (x fastest), uncompressed because compressed bytes vary."""
    affine = GRID.affine[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine), path)


def _sidecar(patient: Brain, sequence: str) -> dict[str, Any]:
    """Return a sidecar that contains names and dates, as some converters write them: ingestion must remove them."""
    _, repetition, echo = TIMES[sequence]
    return {
        "Modality": "MR",
        "MagneticFieldStrength": 1.5 if patient.number % 2 else 3.0,
        "Manufacturer": "GE",
        "ManufacturersModelName": "SIGNA Artist",
        "RepetitionTime": repetition / 1000,
        "EchoTime": echo / 1000,
        "FlipAngle": 90,
        "BodyPartExamined": "BRAIN",
        "SeriesDescription": f"AX {sequence[:2]}",
        "PatientName": f"Doe^Nifti{patient.number:02d}",
        "PatientID": f"NIF-{patient.number:04d}",
        "PatientBirthDate": "19700203",
        "AcquisitionDateTime": "2024-05-06T07:08:09",
        "PatientSex": patient.sex,
        "PatientAge": patient.age_years,
    }


def write_nifti_cohort(folder: Path, patients: int) -> None:
    """Write ``patients`` patients with two sequences and a label map each."""
    for number in range(patients):
        patient = generate_brain(number, GRID, COHORT)
        name = f"sub-{number:02d}"
        anat_folder = folder / name / "anat"
        anat_folder.mkdir(parents=True)
        for sequence, (suffix, _, _) in TIMES.items():
            _save(
                anat_folder / f"{name}_{suffix}.nii",
                simulate_magnitude(patient.images[sequence], number, sequence).astype(np.int16),
            )
            (anat_folder / f"{name}_{suffix}.json").write_text(
                json.dumps(_sidecar(patient, sequence), indent=1, sort_keys=True) + "\n"
            )
        _save(anat_folder / f"{name}_dseg.nii", patient.labels)
