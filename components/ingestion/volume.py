"""Volumes in canonical form, which all formats are read into, and records of an ingestion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Band = tuple[float, float]
"""Lowest and highest frequency of an axis, cycles per pixel."""
ALL: Band = (-0.5, 0.5)


@dataclass(frozen=True)
class SourceFile:
    """One de-identified file under ``data/``.

    Attributes:
        path: relative to ``data/`` (POSIX form).
        md5: of its bytes.
        size: bytes.
    """

    path: str
    md5: str
    size: int


@dataclass(frozen=True)
class SourceSeries:
    """Files of one volume (DICOM slices, one NIfTI or one HDF5 file), with its labels and annotations.

    Attributes:
        dataset_id: id of its dataset card.
        patient_id: pseudonym, equal in all tables of the dataset.
        series_id: stable name within the dataset.
        reader: form in which the images are stored: ``"dicom"``, ``"nifti"``, ``"kspace"``, or the name of a plugin's format.
        files: image files, in the order of the reader.
        labels: label files (NIfTI mask, DICOM SEG or RTSTRUCT), may be empty.
        annotations: sidecar, boxes, findings, report, sex and age; may be empty.
        md5: digest over the MD5 sums of all of these files.
        visit: pseudonym of the patient's visit (DICOM study, session in the file's path); "" = the source states none, and the
            patient's series without one are of one visit.
    """

    dataset_id: str
    patient_id: str
    series_id: str
    reader: str
    files: tuple[SourceFile, ...]
    labels: tuple[SourceFile, ...] = ()
    annotations: tuple[SourceFile, ...] = ()
    md5: str = ""
    visit: str = ""


@dataclass(frozen=True)
class Acquisition:
    """De-identified values of the header. None = the header does not state the value.

    Attributes:
        modality: DICOM Modality, ``"MR"``.
        sequence: e.g. ``"T1-weighted"``, ``"T2-weighted"``, ``"T2-FLAIR"``, ``"DWI"``.
        plane: ``"axial"``, ``"sagittal"`` or ``"coronal"``.
        anatomy: body part, lower case, e.g. ``"brain"``.
        repetition_time_ms, echo_time_ms, inversion_time_ms: milliseconds.
        flip_angle_deg: degrees.
        field_strength_t: tesla.
        vendor, scanner: manufacturer and model.
        sex: ``"F"``, ``"M"``, ``"O"``.
        age_years: years; 90 for every age of 90 and more.
    """

    modality: str = "MR"
    sequence: str | None = None
    plane: str | None = None
    anatomy: str | None = None
    repetition_time_ms: float | None = None
    echo_time_ms: float | None = None
    inversion_time_ms: float | None = None
    flip_angle_deg: float | None = None
    field_strength_t: float | None = None
    vendor: str | None = None
    scanner: str | None = None
    sex: str | None = None
    age_years: float | None = None


@dataclass(frozen=True)
class Box:
    """A lesion box on one slice: half-open index ranges on the grid of ``Volume.voxels``.

    Attributes:
        slice_index: index along the slice axis (axis 0 of ``voxels``).
        row0, col0, row1, col1: pixels, ``row0 < row1``, ``col0 < col1``.
        label: finding, lower case.
    """

    slice_index: int
    row0: int
    col0: int
    row1: int
    col1: int
    label: str


@dataclass(frozen=True)
class Volume:
    """A volume in memory, slice axis first.

    Attributes:
        voxels: (D, H, W) float32 magnitude: D slices; rows run anterior -> posterior (axial, sagittal: see ``affine``).
            For k-space input, the reference reconstruction. Raw scanner units, finite.
        affine: (4, 4) float64, index (d, h, w, 1) -> RAS+ mm.
        acquisition: header values.
        kspace: (D, coils, H, W) complex64, centered Cartesian, or None. ``ifft2`` (centered, orthonormal) gives complex coil images
            on the grid of ``voxels``.
        acquired: frequencies of rows and of columns that were measured (partial Fourier, asymmetric echo); None = all.
        labels: (D, H, W) uint8, 0 = background, other values as in the card's label map, or None.
        boxes: lesion boxes from the dataset's own table (curation derives boxes from labels).
        diagnosis: finding -> whether it is present, from the dataset's own tables; empty = unknown.
        report: the radiologist's text, of which curation uses only sentences of known forms; empty = none.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    acquisition: Acquisition
    kspace: NDArray[np.complex64] | None = None
    labels: NDArray[np.uint8] | None = None
    boxes: tuple[Box, ...] = ()
    diagnosis: dict[str, bool] = field(default_factory=dict)
    report: str = ""
    acquired: tuple[Band, Band] | None = None

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (slice, row, column), mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])


@dataclass(frozen=True)
class QuarantineEntry:
    """A rejected input.

    Attributes:
        path: its number among the files of the source folder (see :class:`~components.ingestion.quarantine.SourceListing`): its
            name may be the patient's.
        reason: the fault.
        remedy: what the user can do about it.
        kind: one of :data:`~components.ingestion.quarantine.KINDS`.
    """

    path: str
    reason: str
    remedy: str
    kind: str = ""


@dataclass(frozen=True)
class Notice:
    """A property of ingested inputs that the user must know, because the source is ambiguous or was interpreted.

    Attributes:
        text: what was found and how it was interpreted.
        count: number of source files.
        example: one of them, by its number among the files of the source folder.
    """

    text: str
    count: int
    example: str


@dataclass(frozen=True)
class IngestReport:
    """Result of one ingestion.

    Attributes:
        root: folder of the dataset under ``data/``.
        series, patients: ingested.
        files_new, files_reused, files_removed: files under ``data/``, compared with the previous ingestion.
        files_ignored: source files that the card excludes.
        quarantined: rejected inputs.
        seconds: duration.
        files_of_layout: files that a layout such as BIDS has beside its images: README, tables of gradients and events.
        notices: what the user must know about ingested inputs.
        unfetched: series of a server that could not be fetched, and that the next ingestion fetches.
    """

    dataset_id: str
    root: Path
    series: int
    patients: int
    files_new: int
    files_reused: int
    files_removed: int
    files_ignored: int
    quarantined: tuple[QuarantineEntry, ...]
    seconds: float
    notices: tuple[Notice, ...] = ()
    files_of_layout: int = 0
    unfetched: int = 0
