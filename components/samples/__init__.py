"""Sample datasets that a bare machine can have: real images out of installed packages, and a generated cohort.

Each is built as a download would leave it, headers and all. The same bytes come out on every machine.
"""

from __future__ import annotations

from pathlib import Path

from components.errors import BadInput
from components.files import atomic_directory
from components.samples.packages import PACKAGED

SYNTHETIC = ("synthetic-brain-dicom", "synthetic-brain-nifti", "synthetic-brain-kspace")
SAMPLES: tuple[str, ...] = (*PACKAGED, *SYNTHETIC)
PATIENTS = 12


def build(dataset_id: str, destination: Path, patients: int | None = None) -> Path:
    """Build a sample dataset, unless it is there already.

    Args:
        patients: size of a synthetic cohort; None = 12.

    Returns:
        ``destination``.

    Raises:
        BadInput: no sample of this name.
    """
    if dataset_id not in SAMPLES:
        raise BadInput(
            "OmniMRI has no sample of this dataset",
            where=dataset_id,
            remedy=f"name its folder in the profile (datasets: path), or choose one of {', '.join(SAMPLES)}",
        )
    if destination.exists():
        return destination
    with atomic_directory(destination) as folder:
        if dataset_id in PACKAGED:
            PACKAGED[dataset_id](folder)
        else:
            from components.samples.dicom_series import write_dicom_cohort
            from components.samples.kspace_files import write_kspace_cohort
            from components.samples.nifti_files import write_nifti_cohort

            writers = dict(zip(SYNTHETIC, (write_dicom_cohort, write_nifti_cohort, write_kspace_cohort), strict=True))
            writers[dataset_id](folder, patients or PATIENTS)
    return destination
