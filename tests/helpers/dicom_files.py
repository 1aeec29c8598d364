"""DICOM files for tests: minimal objects whose attributes a test can change or remove."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

OBLIQUE = (0.9396926, 0.3420202, 0.0, -0.2961981, 0.8137977, 0.5)
"""A row and a column direction, rotated about two axes."""
AXIAL, SAGITTAL, CORONAL = (1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1), (1.0, 0, 0, 0, 0, -1)
ORIGIN_MM = (-30.0, -20, 10)
"""Position of the first slice, LPS+."""
Vector = Iterable[float]
_PIXEL_ATTRIBUTES = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


def random_pixels(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Return noise: it equals none of its flips and rotations."""
    return np.random.default_rng([seed, *shape]).integers(0, 4000, shape, dtype=np.uint16)


def write_slice(folder: Path, name: str, number: int, position: Vector, plane: NDArray[np.uint16], **values: Any) -> Path:
    """Write one classic MR image; ``values`` are attributes by keyword, None removes one."""
    image = _new_object(MRImageStorage, name)
    image.InstanceNumber, image.AcquisitionNumber = number, 1
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = "SE", "SK", "", "2D"
    image.RepetitionTime, image.EchoTime, image.FlipAngle = 500, 12, 90
    image.ImageOrientationPatient, image.PixelSpacing = list(AXIAL), [0.9, 1.1]
    image.SliceThickness = image.SpacingBetweenSlices = 4
    image.ImagePositionPatient = [float(coordinate) for coordinate in position]
    image.Rows, image.Columns, image.PixelData = *plane.shape, plane.tobytes()
    return _save(image, folder / f"{name}.dcm", values)


def write_series(
    folder: Path,
    name: str,
    voxels: NDArray[np.uint16],
    orientation: tuple[float, ...] = AXIAL,
    step_mm: float = 4.0,
    order: Iterable[int] | None = None,
    first: int = 1,
    **values: Any,
) -> list[Path]:
    """Write a stack (slices, rows, columns) along its normal.

    Args:
        order: indices of the slices to write, in the order of their instance numbers; None = all.
        first: instance number of the first.
        values: attributes by keyword, None removes one.
    """
    normal = np.cross(orientation[:3], orientation[3:])
    indices = list(order) if order is not None else list(range(len(voxels)))
    return [
        write_slice(
            folder,
            f"{name}-{index}",
            first + number,
            np.array(ORIGIN_MM) + normal * step_mm * index,
            voxels[index],
            **{"ImageOrientationPatient": list(orientation), **values},
        )
        for number, index in enumerate(indices)
    ]


def write_enhanced(path: Path, frames: list[dict[str, Any]], orientation: tuple[float, ...] = AXIAL, **values: Any) -> Path:
    """Write an enhanced MR image.

    Args:
        frames: each with ``plane`` (rows, columns), ``offset`` mm along the normal, and optionally ``echo``, ``time``, ``b``,
            ``stack``.
        values: attributes by keyword.
    """
    image = _new_object(EnhancedMRImageStorage, path.name)
    image.InstanceNumber, image.NumberOfFrames, image.ImageType = 1, len(frames), ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    image.ComplexImageComponent, image.AcquisitionContrast, image.MRAcquisitionType = "MAGNITUDE", "T1", "3D"
    normal = np.cross(orientation[:3], orientation[3:])
    shared = Dataset()
    shared.PixelMeasuresSequence = _group(PixelSpacing=[0.9, 1.1], SliceThickness=4, SpacingBetweenSlices=4)
    shared.PlaneOrientationSequence = _group(ImageOrientationPatient=list(orientation))
    shared.MRTimingAndRelatedParametersSequence = _group(RepetitionTime=500.0, FlipAngle=90.0)
    image.SharedFunctionalGroupsSequence = [shared]
    image.DimensionIndexSequence = [
        _group(DimensionIndexPointer=tag_for_keyword(keyword), FunctionalGroupPointer=tag_for_keyword("FrameContentSequence"))[0]
        for keyword in ("StackID", "TemporalPositionIndex", "InStackPositionNumber")
    ]
    offsets = sorted({frame["offset"] for frame in frames})
    image.PerFrameFunctionalGroupsSequence = [_frame_groups(frame, offsets, normal) for frame in frames]
    planes = np.stack([frame["plane"] for frame in frames])
    image.Rows, image.Columns, image.PixelData = *planes.shape[1:], planes.tobytes()
    return _save(image, path, values)


def _frame_groups(frame: dict[str, Any], offsets: list[float], normal: NDArray[np.float64]) -> Dataset:
    """Return the functional groups of one frame of an enhanced image."""
    groups = Dataset()
    stack, time, position = frame.get("stack", 1), frame.get("time", 1), 1 + offsets.index(frame["offset"])
    groups.FrameContentSequence = _group(
        StackID=str(stack),
        InStackPositionNumber=position,
        TemporalPositionIndex=time,
        DimensionIndexValues=[stack, time, position],
    )
    position_mm = np.array(ORIGIN_MM) + normal * frame["offset"]
    groups.PlanePositionSequence = _group(ImagePositionPatient=[float(coordinate) for coordinate in position_mm])
    groups.MREchoSequence = _group(EffectiveEchoTime=float(frame.get("echo", 12)))
    if "b" in frame:
        groups.MRDiffusionSequence = _group(DiffusionBValue=float(frame["b"]), DiffusionDirectionality="ISOTROPIC")
    return groups


def write_structure_set(
    path: Path,
    structures: dict[str, list[NDArray[np.float64]]],
    series_uid: str | None = "",
    frame_uid: str | None = None,
    kind: str = "CLOSED_PLANAR",
    **values: Any,
) -> Path:
    """Write an RT Structure Set.

    Args:
        structures: name -> outlines (points, 3), mm LPS+.
        series_uid: UID of the series that it refers to: "" = the series of :func:`write_series`, None = no reference.
        frame_uid: UID of the frame of reference, None = that of :func:`write_series`.
        kind: contour geometric type.
        values: attributes by keyword.
    """
    image = _new_object(RTStructureSetStorage, path.name)
    for keyword in (*_PIXEL_ATTRIBUTES, "FrameOfReferenceUID"):
        delattr(image, keyword)
    image.Modality, image.StructureSetLabel = "RTSTRUCT", "made up"
    frame = frame_uid or generate_uid(entropy_srcs=["frame"])
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["structures"])
    image.ReferencedFrameOfReferenceSequence = _group(FrameOfReferenceUID=frame)
    if series_uid is not None:
        series = _group(SeriesInstanceUID=series_uid or generate_uid(entropy_srcs=["series"]))
        studies = _group(ReferencedSOPInstanceUID="1.2.3", RTReferencedSeriesSequence=series)
        image.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = studies
    image.StructureSetROISequence = [
        _group(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)[0] for number, name in enumerate(structures, 1)
    ]
    image.ROIContourSequence = [
        _group(ReferencedROINumber=number, ContourSequence=_contours(outlines, kind))[0]
        for number, outlines in enumerate(structures.values(), 1)
    ]
    return _save(image, path, values)


def _contours(outlines: list[NDArray[np.float64]], kind: str) -> list[Dataset]:
    return [
        _group(
            ContourGeometricType=kind,
            NumberOfContourPoints=len(outline),
            ContourNumber=number,
            ContourData=[f"{coordinate:.6g}" if abs(coordinate) > 1e-4 else "0" for coordinate in outline.ravel()],
        )[0]
        for number, outline in enumerate(outlines, 1)
    ]


def _new_object(storage: str, name: str) -> FileDataset:
    """Return an object with the attributes that all of these files share."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = storage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", name])
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    image.Modality, image.Manufacturer, image.ManufacturerModelName = "MR", "SIEMENS", "Skyra"
    image.PatientID, image.PatientName, image.PatientSex, image.StudyDate = "patient-1", "Made^Up", "F", "20240506"
    image.StudyInstanceUID, image.FrameOfReferenceUID = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])
    image.SeriesInstanceUID, image.SeriesNumber = generate_uid(entropy_srcs=["series"]), 3
    image.MagneticFieldStrength, image.BodyPartExamined, image.PatientPosition = 3, "BRAIN", "HFS"
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    return image


def _group(**values: Any) -> list[Dataset]:
    """Return a sequence of one item with these attributes."""
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def _save(image: FileDataset, path: Path, values: dict[str, Any]) -> Path:
    """Set attributes (None removes one) and write the object."""
    for keyword, value in values.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path
