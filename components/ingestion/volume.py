"""The canonical volume that every reader makes, whatever the file format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


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
    """The files that make up one volume (a DICOM series, one NIfTI, one HDF5), with its labels if any.

    Attributes:
        dataset_id: the card it belongs to.
        patient_id: pseudonym, the same in every dataset table.
        series_id: stable name within the dataset.
        reader: ``"dicom"``, ``"nifti"`` or ``"kspace"``: chosen by content.
        files: image files, in the reader's order.
        labels: label files (NIfTI mask, DICOM SEG or RTSTRUCT), may be empty.
        annotations: box tables or sidecars that belong to it, may be empty.
        md5: digest over the md5 sums of all of these files.
    """

    dataset_id: str
    patient_id: str
    series_id: str
    reader: str
    files: tuple[SourceFile, ...]
    labels: tuple[SourceFile, ...] = ()
    annotations: tuple[SourceFile, ...] = ()
    md5: str = ""


@dataclass(frozen=True)
class Acquisition:
    """What the header says, de-identified. None = the header does not say.

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
        age_years: years (90 and over reported as 90).
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
    """A lesion box on one slice, half-open pixel ranges of the volume's own grid (``voxels`` indices).

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
        kspace: (D, coils, H, W) complex64, centred Cartesian, or None. ``ifft2`` (centred, orthonormal) gives complex coil images
            on the grid of ``voxels``.
        labels: (D, H, W) uint8, 0 = background, values per the card's label map, or None.
        boxes: lesion boxes from the dataset's own table (labels' boxes are derived in curation).
        diagnosis: finding -> present, from the dataset's own metadata; empty = unknown.
        report: the radiologist's text; only words of known forms are taken out of it (curation/reports.py). Empty = none.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    acquisition: Acquisition
    kspace: NDArray[np.complex64] | None = None
    labels: NDArray[np.uint8] | None = None
    boxes: tuple[Box, ...] = ()
    diagnosis: dict[str, bool] = field(default_factory=dict)
    report: str = ""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size (slice, row, column), mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])


@dataclass(frozen=True)
class Quarantined:
    """An input that was not taken in.

    Attributes:
        path: its number among the files of the source folder (see :class:`~components.ingestion.quarantine.Listing`): its name may
            be the patient's.
        reason: what is wrong with it.
        remedy: what to do.
        kind: one of :data:`~components.ingestion.quarantine.KINDS`.
    """

    path: str
    reason: str
    remedy: str
    kind: str = ""


@dataclass(frozen=True)
class IngestReport:
    """What one ingestion did."""

    dataset_id: str
    root: Path
    series: int
    patients: int
    files_new: int
    files_reused: int
    files_removed: int
    files_ignored: int
    quarantined: tuple[Quarantined, ...]
    seconds: float
