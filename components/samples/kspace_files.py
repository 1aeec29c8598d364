"""Generated patients as two-coil k-space in fastMRI HDF5 format, with boxes of findings in fastMRI+ CSV format.

As in fastMRI, images are stored upside down (rows run posterior to anterior). As in fastMRI+, ``y`` counts from the top of the
displayed image, which is flipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from typing_extensions import override

from components.curation.measure.regions import lesion_boxes_by_slice
from components.curation.text.structure_names import lesion_kinds
from components.samples.cohort import CohortForm, Row, Table
from components.samples.phantom import Anatomy, Grid, Patient

COILS = 2
NOISE_SHARE = 0.8
"""Noise of each coil, relative to that of magnitude images."""
QUANTUM = 2.0**-12
"""k-space is rounded to multiples of this (white matter = 1 in the image): the last bits of an FFT differ between machines."""
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
 <sequenceParameters><TR>{repetition}</TR><TE>{echo}</TE><flipAngle_deg>{flip}</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>
"""


def _coil_images(image: NDArray[np.float64], noise: float, seed: tuple[int, ...]) -> NDArray[np.complex128]:
    """Return coil images (D, coils, H, W) with smooth sensitivities and phase and complex noise, stored upside down."""
    rng = np.random.default_rng([*seed, 7])
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, size) for size in image.shape[1:]], indexing="ij")
    slope = rng.uniform(-1.5, 1.5, size=3)
    phase = np.exp(1j * (slope[0] * rows + slope[1] * columns + slope[2] * rows * columns))
    left, right = (np.exp(-((columns - side) ** 2 + rows**2 / 4)) * np.exp(0.7j * side * rows) for side in (-0.8, 0.8))
    norm = np.sqrt(np.abs(left) ** 2 + np.abs(right) ** 2)
    coils = image[:, None] * phase * np.stack([left / norm, right / norm])
    coils += NOISE_SHARE * noise * (rng.standard_normal(coils.shape) + 1j * rng.standard_normal(coils.shape))
    return np.asarray(coils[:, :, ::-1])


def kspace_of_images(images: NDArray[np.complex128]) -> NDArray[np.complex64]:
    """Return the centered orthonormal 2-D FFT of the images, rounded to :data:`QUANTUM`."""
    axes = (-2, -1)
    spectrum = fft.fftshift(fft.fft2(fft.ifftshift(images, axes=axes), norm="ortho"), axes=axes)
    return np.asarray((np.rint(spectrum.real / QUANTUM) + 1j * np.rint(spectrum.imag / QUANTUM)) * QUANTUM, dtype=np.complex64)


def root_sum_of_squares(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root-sum-of-squares reconstruction (D, H, W), rounded to :data:`QUANTUM`."""
    axes = (-2, -1)
    images = fft.fftshift(fft.ifft2(fft.ifftshift(kspace.astype(np.complex128), axes=axes), norm="ortho"), axes=axes)
    rss = np.sqrt((np.abs(images) ** 2).sum(1))
    return np.asarray(np.rint(rss / QUANTUM) * QUANTUM, dtype=np.float32)


def box_rows(anatomy: Anatomy, patient: Patient, name: str) -> list[Row]:
    """Return one row per slice and finding, counted as in label maps; without any, a study-level row "Normal for age"."""
    rows: list[Row] = []
    spacing_mm = (patient.grid.slice_mm, patient.grid.pixel_mm, patient.grid.pixel_mm)
    for kind, values in lesion_kinds(anatomy.label_map).items():
        mask = np.isin(patient.labels, values)
        for index, (height, width) in lesion_boxes_by_slice(mask, spacing_mm) if mask.any() else ():
            size = width.stop - width.start, height.stop - height.start
            rows.append([name, index, "No", width.start, height.start, *size, kind])
    return rows or [[name, "", "Yes", "", "", "", "", "Normal for age"]]


class RawDataForm(CohortForm):
    """One HDF5 file of k-space for each patient."""

    @override
    def key(self, number: int) -> str:
        return f"file_{number:04d}"

    @override
    def target(self, folder: Path, number: int) -> Path:
        return folder / f"{self.key(number)}.h5"

    @override
    def sequences(self, anatomy: Anatomy) -> tuple[str, ...]:
        return (anatomy.kspace,)

    @override
    def grid(self, anatomy: Anatomy) -> Grid:
        return anatomy.kspace_grid


class KspaceForm(RawDataForm):
    """One file in the layout of fastMRI for each patient, and a table of boxes."""

    index = 2

    @override
    def tables(self, findings: Sequence[str]) -> tuple[Table, ...]:
        return (*super().tables(findings), Table("annotations.csv", COLUMNS))

    @override
    def rows(self, anatomy: Anatomy, patient: Patient) -> tuple[list[Row], ...]:
        return (*super().rows(anatomy, patient), box_rows(anatomy, patient, self.key(patient.number)))

    @override
    def write(self, anatomy: Anatomy, patient: Patient, target: Path) -> None:
        grid, protocol = patient.grid, anatomy.protocol(anatomy.kspace)
        kspace = kspace_of_images(_coil_images(patient.images[anatomy.kspace], patient.noise, patient.seed))
        reconstruction = root_sum_of_squares(kspace)
        header = _HEADER.format(
            number=patient.number,
            sex=patient.sex,
            coils=COILS,
            pixels=grid.pixels,
            fov=grid.pixels * grid.pixel_mm,
            slice_mm=grid.slice_mm,
            repetition=protocol.repetition_ms,
            echo=protocol.echo_ms,
            flip=protocol.flip_deg,
        )
        attributes = {"acquisition": anatomy.acquisition, "patient_id": f"KSP-{patient.number:04d}"}
        write_fastmri(target, kspace, reconstruction, header, attributes)


def write_fastmri(
    path: Path,
    kspace: NDArray[np.complex64],
    reconstruction: NDArray[np.float32],
    header: str,
    attributes: dict[str, str],
) -> None:
    """Write a file in the layout of fastMRI."""
    with h5py.File(path, "w", libver="earliest") as file:
        file.create_dataset("kspace", data=kspace, track_times=False)
        file.create_dataset("reconstruction_rss", data=reconstruction, track_times=False)
        file.create_dataset("ismrmrd_header", data=header, track_times=False)
        file.attrs["acquisition"] = attributes["acquisition"]
        file.attrs["max"] = float(reconstruction.max())
        file.attrs["norm"] = float(np.rint(np.linalg.norm(reconstruction)))
        file.attrs["patient_id"] = attributes["patient_id"]
