"""Small DICOM studies of several patients, with identifying headers."""

from __future__ import annotations

from pathlib import Path

from pydicom.uid import generate_uid

from tests.helpers.dicom_files import random_pixels, write_series


def study_uid(patient: int) -> str:
    """Return the Study Instance UID of a patient."""
    return generate_uid(entropy_srcs=["pacs study", str(patient)])


def series_uid(patient: int, series: str) -> str:
    """Return a Series Instance UID."""
    return generate_uid(entropy_srcs=["pacs series", str(patient), series])


def write_mr_series(
    folder: Path, patient: int, series: str = "t1", slices: int = 3, first: int = 0, pixels: int = 16
) -> list[Path]:
    """Write slices ``first`` to ``first + slices - 1`` of a series; ``patient`` and ``series`` decide its voxels and UIDs."""
    seed = patient * 100 + sum(map(ord, series))
    voxels = random_pixels(64, pixels, pixels, seed=seed)[: first + slices]
    return write_series(
        folder / f"patient-{patient}",
        f"{patient}-{series}",
        voxels,
        order=range(first, first + slices),
        first=first + 1,
        PatientID=f"MRN-{patient:05d}",
        PatientName=f"Secret^Person{patient}",
        PatientBirthDate="19610417",
        AccessionNumber=f"ACC-{patient}",
        StudyID="1",
        StudyTime="070809",
        ReferringPhysicianName="Secret^Doctor",
        StudyInstanceUID=study_uid(patient),
        SeriesInstanceUID=series_uid(patient, series),
        FrameOfReferenceUID=generate_uid(entropy_srcs=["pacs frame", str(patient)]),
        SeriesDescription=series,
        RepetitionTime=500 if series == "t1" else 4000,
        EchoTime=12 if series == "t1" else 90,
    )


def write_study(folder: Path, patient: int, *series: str, slices: int = 3) -> Path:
    """Write the series of a patient; return the folder of all patients."""
    for name in series or ("t1", "t2"):
        write_mr_series(folder, patient, name, slices)
    return folder


IDENTIFYING = (
    *(b"Secret", b"MRN-0", b"19610417", b"ACC-"),
    *(uid(number).encode() for number in (1, 2) for uid in (study_uid, lambda number: series_uid(number, "t1"))),
)
"""Identifying values of these studies."""
