"""Outputs that DICOM sources are written to: de-identified DICOM, or NIfTI with a sidecar for files that contain several slices."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from typing_extensions import override

from components.catalog import DatasetCard
from components.errors import BadInput
from components.ingestion.annotations import rt_structures
from components.ingestion.deidentification.deidentify import clean_sidecar, deidentify_dicom
from components.ingestion.formats.base import Output, PlannedFile, ReadBackError, WriteContext
from components.ingestion.formats.dicom import fast_elements
from components.ingestion.formats.dicom.classic import SliceReadBack
from components.ingestion.formats.dicom.headers import sidecar_fields
from components.ingestion.formats.dicom.multiframe import FramePlace, unpack_frames, unpack_mosaic
from components.ingestion.formats.dicom.padding import blank_padding, find_padding, fit_padding
from components.ingestion.formats.dicom.pixels import decode_pixels, parse_slice, rescale, rescale_of, stored_pixels
from components.ingestion.formats.dicom.reading import read_header, read_object
from components.ingestion.formats.nifti_writer import NiftiOutput, content_md5
from components.ingestion.formats.voxels import notes_on_values
from components.ingestion.planned_annotations import PlannedJson
from components.machine_faults import raise_machine_fault

_SHORTS = ("Rows", "Columns", "BitsAllocated", "PixelRepresentation")
_NUMBERS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")


def _read_geometry(dataset: Dataset) -> tuple[object, ...]:
    """Return what a reader takes from a header: form of the pixels, geometry, scaling, and the outlines of structures."""
    shorts = tuple(fast_elements.short(dataset, name) for name in _SHORTS)
    frames = int(fast_elements.number(dataset, "NumberOfFrames") or 1)
    structures = [] if fast_elements.is_absent(dataset, "ROIContourSequence") else dataset.ROIContourSequence or []
    contours = [
        tuple(float(value) for value in contour.get("ContourData") or ())
        for roi in structures
        for contour in roi.get("ContourSequence") or ()
    ]
    outlines = [contour for contour in contours if contour]
    return shorts, frames, tuple(fast_elements.optional_numbers(dataset, name) for name in _NUMBERS), outlines


class DicomOutput(Output):
    """A de-identified DICOM file of any kind.

    The file must contain the bytes that were written, so that every fault of the disk is found. They are parsed as curation parses
    them: pixel data, geometry, scaling and outlines must be those of the source. Equal bytes of pixels in an equal form decode to
    equal values.
    """

    def __init__(self, clean: Dataset, source: Dataset, pixels: bytes = b"", content: str = "") -> None:
        """Take a de-identified data set.

        Args:
            source: the data set that it was made from.
            pixels: pixel data that it contains.

        Raises:
            BadInput: de-identification could not keep the geometry: an element has a damaged type (VR), which may hide any text.
        """
        self._clean, self._pixels, self.content = clean, pixels, content
        self._geometry = _read_geometry(source)
        if _read_geometry(clean) != self._geometry:
            raise BadInput("a position, size, scaling or outline whose element is damaged", remedy="get the file again")
        self._written = b""

    @override
    def write(self, path: Path) -> None:
        buffer = BytesIO()
        self._clean.save_as(buffer, enforce_file_format=True)
        self._written = buffer.getvalue()
        path.write_bytes(self._written)

    @override
    def check(self, path: Path) -> SliceReadBack | None:
        self._read_equal(path)
        return None

    def _read_equal(self, path: Path) -> Dataset:
        """Read the file, and require the pixels and the geometry of the source.

        Raises:
            ReadBackError: others. An error of the reader is one, too: it could read the same from the source.
        """
        file = path.read_bytes()
        if file != self._written:
            raise ReadBackError("other bytes")
        try:
            dataset = parse_slice(file, path)
            pixels, geometry = fast_elements.content(dataset, "PixelData"), _read_geometry(dataset)
        except Exception as error:
            raise_machine_fault(error, path.name)
            raise ReadBackError(f"a header that cannot be read ({type(error).__name__})") from None
        if pixels[: len(self._pixels)] != self._pixels:
            raise ReadBackError("other pixels")
        if geometry != self._geometry:
            raise ReadBackError("other geometry or outlines")
        return dataset


class SliceOutput(DicomOutput):
    """A de-identified classic image.

    **Why a written series need not be decoded a second time.** The reader of a volume (:func:`classic.read_series`) parses each
    file, takes a frame, a scaling and the decoded values from it, orders the frames, and places the scaled values. All but the
    last is done here with the bytes that lie on the disk, by the same functions, and is compared with what was decoded from the
    source: values bit by bit (which is stronger than a digest of them), geometry and scaling number by number. The frames and the
    range of values that were read are returned, so that :func:`classic.check_slices` applies the reader's rules for a volume to
    them. What remains is arithmetic on values known to be right.
    """

    def __init__(self, clean: Dataset, source: Dataset, values: NDArray[Any], pixels: bytes, content: str) -> None:
        """Take a de-identified data set.

        Args:
            values: (rows, columns), decoded from the source.
            source, pixels, content: see :class:`DicomOutput`.
        """
        super().__init__(clean, source, pixels, content)
        self._values = values
        self.notes = _notes_on_slice(values, source)

    @override
    def check(self, path: Path) -> SliceReadBack:
        dataset = self._read_equal(path)
        values = decode_pixels(dataset)
        if not np.array_equal(values, self._values):
            raise ReadBackError("other voxels")
        return SliceReadBack.of(dataset, values, path)


def _notes_on_slice(stored: NDArray[Any], header: Dataset) -> tuple[str, ...]:
    """Return what the user should know about the values of a classic image."""
    padding, scale = find_padding(stored, header), rescale_of(header)
    can_be_negative = stored.dtype.kind == "i" or min(scale) < 0
    values = np.array(rescale(stored, *scale)) if can_be_negative or padding.mask is not None else stored
    notes = blank_padding([values], [padding])
    others = values if padding.mask is None else values[~padding.mask]
    return (*notes_on_values(others), *notes) if can_be_negative and others.size else notes


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
        values = decode_pixels(dataset)
        fit_padding(dataset)
        pixels = stored_pixels(dataset, values)
        clean = deidentify_dicom(dataset, pixels, self.patient, context.pseudonyms, _label_names(context.card))
        scale = (dataset.get("RescaleSlope"), dataset.get("RescaleIntercept"), dataset.get("PixelRepresentation"))
        properties = (dataset.Rows, dataset.Columns, dataset.BitsAllocated, *(str(value) for value in scale))
        content = content_md5(pixels, *properties)
        if self.role == "image":
            return SliceOutput(clean, dataset, values, pixels, content)
        return DicomOutput(clean, dataset, pixels, content)


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
        return DicomOutput(clean, remaining)


@dataclass(frozen=True)
class PlannedMosaic(PlannedFile):
    """A Siemens mosaic, to be written as NIfTI."""

    @override
    def prepare(self, context: WriteContext) -> NiftiOutput:
        image, notes = unpack_mosaic(self.source)
        return NiftiOutput(image, notes=notes)


@dataclass(frozen=True)
class PlannedFrames(PlannedFile):
    """Frames of an enhanced image, or of the parts of a concatenated one, that form one volume, to be written as NIfTI.

    Attributes:
        frames: file and index of each frame, in slice order.
    """

    frames: tuple[FramePlace, ...]

    @property
    @override
    def sources(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(path for path, _ in self.frames))

    @override
    def prepare(self, context: WriteContext) -> NiftiOutput:
        image, notes = unpack_frames(self.frames)
        return NiftiOutput(image, notes=notes)


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
