"""Generated patients as eight-coil raw data: fastMRI HDF5 and ISMRMRD in turn, some with a noise scan, some with partial Fourier.

As scanners record it: the readout (rows) is oversampled twofold, the phase-encoding axis (columns) is shorter than the readout, the
image has a phase, and the noise of the coils is correlated with the covariance of :func:`noise_covariance`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from components.samples.kspace_files import QUANTUM, RawDataForm, kspace_of_images, root_sum_of_squares, write_fastmri
from components.samples.phantom import Anatomy, Patient

COILS = 8
NOISE_SHARE = 0.4
"""Mean noise of the coils, relative to that of magnitude images."""
COLUMN_SHARE = 7 / 8
"""Columns per row of the reconstructed matrix."""
PARTIAL_SHARE = 1 / 8
"""First share of the columns that partial Fourier leaves out."""
NOISE_SAMPLES = 4096
_SIZE = "<x>{}</x><y>{}</y><z>{}</z>"
_SPACE = f"<matrixSize>{_SIZE}</matrixSize><fieldOfView_mm>{_SIZE}</fieldOfView_mm>"
_HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <subjectInformation><patientName>Doe^Coils{number:02d}</patientName><patientID>COIL-{number:04d}</patientID></subjectInformation>
 <acquisitionSystemInformation><systemVendor>SIEMENS</systemVendor><systemModel>Aera</systemModel>
 <systemFieldStrength_T>1.494</systemFieldStrength_T><receiverChannels>{coils}</receiverChannels></acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding><encodedSpace>{encoded}</encodedSpace><reconSpace>{reconstructed}</reconSpace>
 <encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{center}</center>
 </kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory></encoding>
 <sequenceParameters><TR>{repetition}</TR><TE>{echo}</TE><flipAngle_deg>{flip}</flipAngle_deg></sequenceParameters>
</ismrmrdHeader>
"""


def noise_covariance(coils: int = COILS) -> NDArray[np.complex128]:
    """Return the (C, C) covariance of the noise, mean variance 1: gains of 0.7 to 1.3, correlation 0.4 of neighbors."""
    index = np.arange(coils)
    apart = (index[:, None] - index[None]) % coils
    signed = np.where(apart > coils / 2, apart - coils, apart)
    gains = np.linspace(0.7, 1.3, coils)
    correlation = 0.4 ** np.abs(signed) * np.exp(0.5j * np.sign(signed) * (2 * np.abs(signed) < coils))
    covariance = gains[:, None] * gains[None] * correlation
    return np.asarray(covariance / np.trace(covariance).real * coils)


def coil_sensitivities(rows: int, columns: int, coils: int = COILS) -> NDArray[np.complex128]:
    """Return smooth complex sensitivities (C, H, W) of loops in a ring around the object, sum of squares 1."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    angle = 2 * np.pi * np.arange(coils)[:, None, None] / coils
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    raw = np.exp(1j * (angle + 0.8 * along + 0.6 * across)) / ((along - 1.3) ** 2 + across**2 + 0.3)
    return np.asarray(raw / np.sqrt((np.abs(raw) ** 2).sum(0)))


def measure(image: NDArray[np.float64], noise: float, seed: tuple[int, ...]) -> NDArray[np.complex64]:
    """Return k-space (D, C, 2 H, W) of magnitude images (D, H, W): oversampled readout, smooth phase, correlated noise."""
    rng = np.random.default_rng([*seed, 11])
    rows, columns = image.shape[1:]
    maps = coil_sensitivities(rows, columns)
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    slope = rng.uniform(-1.5, 1.5, size=3)
    coils = image[:, None] * np.exp(1j * (slope[0] * y + slope[1] * x + slope[2] * x * y)) * maps
    coils = np.pad(coils, ((0, 0), (0, 0), (rows // 2, rows - rows // 2), (0, 0)))
    return kspace_of_images(coils + noise * correlated_noise(rng, coils.shape))


def correlated_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.complex128]:
    """Return complex noise (..., C, H, W) with :func:`noise_covariance`."""
    white = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return np.asarray(np.einsum("cd,...dhw->...chw", np.linalg.cholesky(noise_covariance(shape[-3])), white))


class MulticoilForm(RawDataForm):
    """One file for each patient: fastMRI for even numbers, ISMRMRD for odd ones.

    Every second file of either kind has partial Fourier; every second ISMRMRD file, those without it, has a noise scan.
    """

    index = 3

    @override
    def write(self, anatomy: Anatomy, patient: Patient, target: Path) -> None:
        image = patient.images[anatomy.kspace]
        columns = round(image.shape[2] * COLUMN_SHARE)
        start = (image.shape[2] - columns) // 2
        image, is_raw, is_partial = image[..., start : start + columns], patient.number % 2 == 1, patient.number % 4 >= 2
        kspace = measure(image if is_raw else image[:, ::-1], NOISE_SHARE * patient.noise, patient.seed)
        first = round(columns * PARTIAL_SHARE) if is_partial else 0
        kspace[..., :first] = 0
        header = _header(anatomy, patient, kspace.shape, first if is_raw else 0)
        if is_raw:
            _write_ismrmrd(target, header, kspace, first, patient, with_noise=not is_partial)
            return
        reference = root_sum_of_squares(kspace)[:, image.shape[1] // 2 :][:, : image.shape[1]]
        attributes = {"acquisition": anatomy.acquisition, "patient_id": f"COIL-{patient.number:04d}"}
        write_fastmri(target, kspace, reference, header, attributes)


def _header(anatomy: Anatomy, patient: Patient, shape: tuple[int, ...], first: int) -> str:
    """Return the XML header of k-space (D, C, 2 H, W) whose ``first`` columns are missing."""
    _, coils, rows, columns = shape
    grid, protocol = patient.grid, anatomy.protocol(anatomy.kspace)
    encoded, reconstructed = (
        _SPACE.format(x, columns, 1, x * grid.pixel_mm, columns * grid.pixel_mm, grid.slice_mm) for x in (rows, rows // 2)
    )
    return _HEADER.format(
        number=patient.number,
        coils=coils,
        encoded=encoded,
        reconstructed=reconstructed,
        last=columns - first - 1,
        center=columns // 2 - first,
        repetition=protocol.repetition_ms,
        echo=protocol.echo_ms,
        flip=protocol.flip_deg,
    )


def _write_ismrmrd(path: Path, header: str, kspace: NDArray[np.complex64], first: int, patient: Patient, with_noise: bool) -> None:
    """Write the lines of k-space (D, C, H, W) from column ``first`` on, slice after slice, after a noise scan if there is one."""
    import ismrmrd

    directions = np.diag([-1.0, -1.0, 1.0]) @ patient.grid.affine[:3, :3] / patient.grid.spacing_mm  # RAS+ to LPS+
    lines = []
    if with_noise:
        noise = correlated_noise(np.random.default_rng([*patient.seed, 12]), (kspace.shape[1], 1, NOISE_SAMPLES))[:, 0]
        scan = (np.rint(NOISE_SHARE * patient.noise * noise / QUANTUM * 64) * QUANTUM / 64).astype(np.complex64)
        lines.append(ismrmrd.Acquisition.from_array(scan))
        lines[0].set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    for number, coils in enumerate(kspace):
        center = patient.grid.affine @ [number, *(size // 2 for size in patient.grid.shape[1:]), 1]
        for column in range(first, kspace.shape[-1]):
            line = ismrmrd.Acquisition.from_array(np.ascontiguousarray(coils[..., column]))
            line.center_sample, line.idx.slice, line.idx.kspace_encode_step_1 = coils.shape[1] // 2, number, column - first
            line.slice_dir[:], line.read_dir[:], line.phase_dir[:] = directions.T
            line.position[:] = np.diag([-1.0, -1.0, 1.0]) @ center[:3]
            lines.append(line)
    with ismrmrd.File(path, mode="w") as file:
        file["dataset"].header = ismrmrd.xsd.CreateFromDocument(header)
        file["dataset"].acquisitions = lines
