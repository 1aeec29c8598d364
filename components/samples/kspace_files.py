"""Write the synthetic cohort as multi-coil k-space in fastMRI HDF5 format, with lesion boxes in fastMRI+ CSV format.

As in fastMRI, images are stored upside down (rows run posterior to anterior). As in fastMRI+, ``y`` counts from the top of the
displayed image, which is flipped.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from components.samples.cohort import LESION, SEED, Brain, Grid, generate_brain

GRID = Grid(slices=16, pixels=96, slice_mm=7.0, pixel_mm=2.25)
COHORT, COILS, NOISE = 2, 2, 0.02
QUANTUM = 2.0**-12
"""k-space is rounded to multiples of this (white matter = 1 in the image): the last bits of an FFT differ between machines."""
SEQUENCE = "T2-weighted"
COLUMNS = ("file", "slice", "study_level", "x", "y", "width", "height", "label")

_HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Doe^Kspace{number:02d}</patientName><patientID>KSP-{number:04d}</patientID>
 <patientBirthdate>1970-02-03</patientBirthdate><patientGender>{sex}</patientGender></subjectInformation>
 <studyInformation><studyDate>2024-05-06</studyDate></studyInformation>
 <acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Aera</systemModel>
 <systemFieldStrength_T>1.494</systemFieldStrength_T><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
 <encoding><encodedSpace><matrixSize><x>{pixels}</x><y>{pixels}</y><z>1</z></matrixSize>
 <fieldOfView_mm><x>{fov}</x><y>{fov}</y><z>{slice_mm}</z></fieldOfView_mm></encodedSpace>
 <reconSpace><matrixSize><x>{pixels}</x><y>{pixels}</y><z>1</z></matrixSize>
 <fieldOfView_mm><x>{fov}</x><y>{fov}</y><z>{slice_mm}</z></fieldOfView_mm></reconSpace></encoding>
 <sequenceParameters><TR>4500</TR><TE>95</TE><flipAngle_deg>90</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>
"""


def _coil_images(patient: Brain) -> NDArray[np.complex128]:
    """Return coil images (D, coils, H, W) with smooth sensitivities and phase and complex noise, stored upside down."""
    rng = np.random.default_rng([SEED, COHORT, patient.number, 7])
    image = patient.images[SEQUENCE]
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, GRID.pixels)] * 2, indexing="ij")
    slope = rng.uniform(-1.5, 1.5, size=3)
    phase = np.exp(1j * (slope[0] * rows + slope[1] * columns + slope[2] * rows * columns))
    left, right = (np.exp(-((columns - side) ** 2 + rows**2 / 4)) * np.exp(0.7j * side * rows) for side in (-0.8, 0.8))
    norm = np.sqrt(np.abs(left) ** 2 + np.abs(right) ** 2)
    coils = image[:, None] * phase * np.stack([left / norm, right / norm])
    noise = rng.standard_normal(coils.shape) + 1j * rng.standard_normal(coils.shape)
    return np.asarray((coils + NOISE * noise)[:, :, ::-1])


def _kspace(images: NDArray[np.complex128]) -> NDArray[np.complex64]:
    """Return the centered orthonormal 2-D FFT of the images, rounded to :data:`QUANTUM`."""
    axes = (-2, -1)
    spectrum = fft.fftshift(fft.fft2(fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes)
    return np.asarray((np.rint(spectrum.real / QUANTUM) + 1j * np.rint(spectrum.imag / QUANTUM)) * QUANTUM, dtype=np.complex64)


def _reconstruction(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root-sum-of-squares reconstruction (D, H, W), rounded to :data:`QUANTUM`."""
    axes = (-2, -1)
    images = fft.fftshift(fft.ifft2(fft.ifftshift(kspace.astype(np.complex128), axes=axes), norm="ortho"), axes=axes)
    rss = np.sqrt((np.abs(images) ** 2).sum(1))
    return np.asarray(np.rint(rss / QUANTUM) * QUANTUM, dtype=np.float32)


def _box_rows(patient: Brain, name: str) -> list[dict[str, Any]]:
    """Return one row per connected lesion per slice; without lesions, one study-level row "Normal for age"."""
    rows = []
    for index, labels in enumerate(patient.labels):
        regions, _ = ndimage.label(labels == LESION, structure=np.ones((3, 3)))
        for height, width in ndimage.find_objects(regions):
            rows.append(
                {
                    "file": name,
                    "slice": index,
                    "study_level": "No",
                    "x": width.start,
                    "y": height.start,
                    "width": width.stop - width.start,
                    "height": height.stop - height.start,
                    "label": "lesion",
                }
            )
    return rows or [
        {"file": name, "slice": "", "study_level": "Yes", "x": "", "y": "", "width": "", "height": "", "label": "Normal for age"}
    ]


def write_kspace_cohort(folder: Path, patients: int) -> None:
    """Write one file per patient and one table of lesion boxes."""
    table: list[dict[str, Any]] = []
    for number in range(patients):
        patient = generate_brain(number, GRID, COHORT)
        name = f"file_brain_AXT2_{number:03d}"
        kspace = _kspace(_coil_images(patient))
        reconstruction = _reconstruction(kspace)
        header = _HEADER.format(
            number=number, sex=patient.sex, coils=COILS, pixels=GRID.pixels, fov=GRID.pixels * GRID.pixel_mm, slice_mm=GRID.slice_mm
        )
        with h5py.File(folder / f"{name}.h5", "w", libver="earliest") as file:
            file.create_dataset("kspace", data=kspace, track_times=False)
            file.create_dataset("reconstruction_rss", data=reconstruction, track_times=False)
            file.create_dataset("ismrmrd_header", data=header, track_times=False)
            file.attrs["acquisition"] = "AXT2"
            file.attrs["max"] = float(reconstruction.max())
            file.attrs["norm"] = float(np.rint(np.linalg.norm(reconstruction)))
            file.attrs["patient_id"] = f"KSP-{number:04d}"
        table += _box_rows(patient, name)
    with (folder / "annotations.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
