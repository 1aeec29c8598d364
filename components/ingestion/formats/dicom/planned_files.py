"""Outputs that DICOM sources are written to: de-identified DICOM, or NIfTI with a sidecar for files that contain several slices."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from typing_extensions import override

from components.catalog import DatasetCard
from components.ingestion.annotations import rt_structures
from components.ingestion.deidentification.deidentify import clean_sidecar, deidentify_dicom
from components.ingestion.formats.base import Output, PlannedFile, ReadBackError, WriteContext
from components.ingestion.formats.dicom.fast_elements import content, text
from components.ingestion.formats.dicom.headers import sidecar_fields
from components.ingestion.formats.dicom.multiframe import unpack_frames, unpack_mosaic
from components.ingestion.formats.dicom.pixels import read_slice, stored_pixels
from components.ingestion.formats.dicom.reading import read_header, read_object
from components.ingestion.formats.nifti_writer import NiftiOutput, content_md5
from components.ingestion.planned_annotations import PlannedJson

_READ_BACK = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation", "NumberOfFrames")
_READ_BACK_NUMBERS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


def _reading_of(dataset: Dataset, pixels: bytes) -> tuple[object, ...]:
    """Return what a reader takes from a data set: pixels, their form, geometry, scaling, and the outlines of structures."""
    numbers = tuple(text(dataset, name).split("\\") for name in _READ_BACK_NUMBERS)
    values = tuple(tuple(float(item) for item in items if item) for items in numbers)
    contours = [
        tuple(float(value) for value in contour.get("ContourData") or ())
        for roi in dataset.get("ROIContourSequence") or ()
        for contour in roi.get("ContourSequence") or ()
    ]
    return pixels, tuple(str(dataset.get(name) or "") for name in _READ_BACK), values, contours


class DicomOutput(Output):
    """A de-identified DICOM file.

    The file is parsed as curation parses it; its pixels, geometry, scaling and outlines must be those of the source. Equal bytes of
    pixels in an equal form decode to equal values, so that they are compared without being decoded.
    """

    def __init__(self, clean: Dataset, expected: tuple[object, ...], content: str = "") -> None:
        """Take a de-identified data set.

        Args:
            expected: what a reader takes from the source.
        """
        self._clean, self._expected, self.content = clean, expected, content

    @override
    def write(self, path: Path) -> None:
        buffer = BytesIO()
        self._clean.save_as(buffer, enforce_file_format=True)
        path.write_bytes(buffer.getbuffer())

    @override
    def check(self, path: Path) -> None:
        dataset = read_slice(path)
        pixels = content(dataset, "PixelData")
        expected = self._expected[0]
        assert isinstance(expected, bytes)
        if _reading_of(dataset, pixels[: len(expected)]) != self._expected:
            raise ReadBackError("other pixels, geometry or outlines")


@dataclass(frozen=True)
class PlannedDicom(PlannedFile):
    """A classic image or a segmentation, to be written as DICOM with decompressed pixels, reduced to the stored bits.

    Attributes:
        patient: patient before the name becomes a pseudonym (see :mod:`components.ingestion.formats.dicom.patients`).
    """

    patient: str

    @override
    def prepare(self, context: WriteContext) -> DicomOutput:
        dataset = read_object(self.source)
        pixels = stored_pixels(dataset)
        clean = deidentify_dicom(dataset, pixels, self.patient, context.pseudonyms, _label_names(context.card))
        scale = (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"), dataset.get("PixelRepresentation"))
        properties = (dataset.Rows, dataset.Columns, dataset.BitsAllocated, *(str(value) for value in scale))
        return DicomOutput(clean, _reading_of(dataset, pixels), content_md5(pixels, *properties))


@dataclass(frozen=True)
class PlannedStructureSet(PlannedFile):
    """An RT Structure Set, to be written as DICOM without the structures that the card ignores.

    Attributes:
        patient: patient before the name becomes a pseudonym.
    """

    patient: str

    @override
    def prepare(self, context: WriteContext) -> DicomOutput:
        dataset = read_object(self.source)
        remaining = rt_structures.remove_structures(dataset, context.card.layout.ignored_structures)
        clean = deidentify_dicom(remaining, None, self.patient, context.pseudonyms, _label_names(context.card))
        return DicomOutput(clean, _reading_of(remaining, b""))


@dataclass(frozen=True)
class PlannedMosaic(PlannedFile):
    """A Siemens mosaic, to be written as NIfTI."""

    @override
    def prepare(self, context: WriteContext) -> NiftiOutput:
        return NiftiOutput(unpack_mosaic(self.source))


@dataclass(frozen=True)
class PlannedFrames(PlannedFile):
    """Frames of an enhanced image that form one volume, to be written as NIfTI.

    Attributes:
        indices: frames in slice order.
    """

    indices: tuple[int, ...]

    @override
    def prepare(self, context: WriteContext) -> NiftiOutput:
        return NiftiOutput(unpack_frames(self.source, self.indices))


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
