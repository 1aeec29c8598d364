"""Outputs that DICOM sources are written to: de-identified DICOM, or NIfTI with a sidecar for files that contain several slices."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from typing_extensions import override

from components.catalog import DatasetCard
from components.files import atomic_file
from components.ingestion.annotations import rt_structures
from components.ingestion.deidentification.deidentify import clean_sidecar, deidentify_dicom
from components.ingestion.formats.base import PlannedFile, WriteContext
from components.ingestion.formats.dicom.headers import sidecar_fields
from components.ingestion.formats.dicom.multiframe import unpack_frames, unpack_mosaic
from components.ingestion.formats.dicom.pixels import stored_pixels
from components.ingestion.formats.dicom.reading import read_header, read_object
from components.ingestion.formats.nifti_writer import content_md5, write_nifti
from components.ingestion.planned_annotations import PlannedJson


@dataclass(frozen=True)
class PlannedDicom(PlannedFile):
    """A classic image or a segmentation, to be written as DICOM with decompressed pixels, reduced to the stored bits.

    Attributes:
        patient: patient before the name becomes a pseudonym (see :mod:`components.ingestion.formats.dicom.patients`).
    """

    patient: str

    @override
    def write(self, target: Path, context: WriteContext) -> str:
        dataset = read_object(self.source)
        pixels = stored_pixels(dataset)
        _save(deidentify_dicom(dataset, pixels, self.patient, context.pseudonyms, _label_names(context.card)), target)
        scale = (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"), dataset.get("PixelRepresentation"))
        return content_md5(pixels, dataset.Rows, dataset.Columns, dataset.BitsAllocated, *(str(value) for value in scale))


@dataclass(frozen=True)
class PlannedStructureSet(PlannedFile):
    """An RT Structure Set, to be written as DICOM without the structures that the card ignores.

    Attributes:
        patient: patient before the name becomes a pseudonym.
    """

    patient: str

    @override
    def write(self, target: Path, context: WriteContext) -> str:
        dataset = read_object(self.source)
        remaining = rt_structures.remove_structures(dataset, context.card.layout.ignored_structures)
        _save(deidentify_dicom(remaining, None, self.patient, context.pseudonyms, _label_names(context.card)), target)
        return ""


@dataclass(frozen=True)
class PlannedMosaic(PlannedFile):
    """A Siemens mosaic, to be written as NIfTI."""

    @override
    def write(self, target: Path, context: WriteContext) -> str:
        return write_nifti(unpack_mosaic(self.source), target)


@dataclass(frozen=True)
class PlannedFrames(PlannedFile):
    """Frames of an enhanced image that form one volume, to be written as NIfTI.

    Attributes:
        indices: frames in slice order.
    """

    indices: tuple[int, ...]

    @override
    def write(self, target: Path, context: WriteContext) -> str:
        return write_nifti(unpack_frames(self.source, self.indices), target)


@dataclass(frozen=True)
class PlannedHeaderSidecar(PlannedJson):
    """Sidecar of a NIfTI volume from the DICOM header.

    Attributes:
        frame: index of the frame whose functional groups are used.
    """

    frame: int = 0

    @override
    def content(self, context: WriteContext) -> dict[str, Any]:
        fields = sidecar_fields(read_header(self.source), self.frame)
        return clean_sidecar(fields, str(fields.get("Sequence", "")))


def _label_names(card: DatasetCard) -> frozenset[str]:
    """Return names of segments and structures that may be retained, lower case."""
    return frozenset(name.lower() for name in card.label_map.values())


def _save(clean: Dataset, target: Path) -> None:
    buffer = BytesIO()
    clean.save_as(buffer, enforce_file_format=True)
    with atomic_file(target) as temporary:
        temporary.write_bytes(buffer.getbuffer())
