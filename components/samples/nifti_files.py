"""Generated patients as NIfTI with JSON sidecars and label maps, with BIDS names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from typing_extensions import override

from components.samples.cohort import CohortForm
from components.samples.phantom import Anatomy, Grid, Patient, Protocol


def save_nifti(path: Path, values: np.ndarray[Any, Any], grid: Grid) -> None:
    """Write (D, H, W) as NIfTI in its usual axis order (columns fastest), uncompressed because compressed bytes vary."""
    affine = grid.affine[:, [2, 1, 0, 3]]
    nib.save(nib.Nifti1Image(np.ascontiguousarray(values.transpose(2, 1, 0)), affine), path)


def _sidecar(anatomy: Anatomy, patient: Patient, protocol: Protocol) -> dict[str, Any]:
    """Return a sidecar that contains names and dates, as some converters write them: ingestion must remove them."""
    inversion = {"InversionTime": protocol.inversion_ms / 1000} if protocol.inversion_ms else {}
    return {
        "Modality": "MR",
        "MagneticFieldStrength": 1.5 if patient.number % 2 else 3.0,
        "Manufacturer": "GE",
        "ManufacturersModelName": "SIGNA Artist",
        "RepetitionTime": protocol.repetition_ms / 1000,
        "EchoTime": protocol.echo_ms / 1000,
        "FlipAngle": protocol.flip_deg,
        "ScanningSequence": protocol.technique,
        "BodyPartExamined": anatomy.name.split()[0].upper(),
        "SeriesDescription": f"{patient.grid.plane[:3].upper()} {protocol.suffix}",
        "PatientName": f"Doe^Nifti{patient.number:02d}",
        "PatientID": f"NIF-{patient.number:04d}",
        "PatientBirthDate": "19700203",
        "AcquisitionDateTime": "2024-05-06T07:08:09",
        "PatientSex": patient.sex,
        "PatientAge": patient.age_years,
        **inversion,
    }


class NiftiForm(CohortForm):
    """One folder ``sub-<number>`` for each patient: images, sidecars and a label map in ``anat``."""

    index = 1

    @override
    def key(self, number: int) -> str:
        return f"sub-{number:04d}"

    @override
    def target(self, folder: Path, number: int) -> Path:
        return folder / self.key(number)

    @override
    def write(self, anatomy: Anatomy, patient: Patient, target: Path) -> None:
        name = self.key(patient.number)
        anat_folder = target / "anat"
        anat_folder.mkdir()
        for protocol in anatomy.protocols:
            stem = anat_folder / f"{name}_{protocol.suffix}"
            save_nifti(stem.with_suffix(".nii"), patient.simulate_magnitude(protocol.sequence).astype(np.int16), patient.grid)
            sidecar = json.dumps(_sidecar(anatomy, patient, protocol), indent=1, sort_keys=True)
            stem.with_suffix(".json").write_text(f"{sidecar}\n")
        save_nifti(anat_folder / f"{name}_dseg.nii", patient.labels, patient.grid)
