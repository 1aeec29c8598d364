"""DICOM files made for a test: as small as a scanner's would be wrong in one way or another."""

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
"""A row and a column direction, turned about two axes."""
AXIAL, SAGITTAL, CORONAL = (1.0, 0, 0, 0, 1, 0), (0.0, 1, 0, 0, 0, -1), (1.0, 0, 0, 0, 0, -1)
Vector = Iterable[float]


def _new(storage: str, name: str) -> FileDataset:
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


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint16]:
    """Noise, which looks like itself only one way round."""
    return np.random.default_rng([seed, *shape]).integers(0, 4000, shape, dtype=np.uint16)


def slice_(folder: Path, name: str, number: int, position: Vector, plane: NDArray[np.uint16], **values: Any) -> Path:
    """Write one classic MR image; ``values`` are attributes by keyword, None takes one away."""
    image = _new(MRImageStorage, name)
    image.InstanceNumber, image.AcquisitionNumber = number, 1
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = "SE", "SK", "", "2D"
    image.RepetitionTime, image.EchoTime, image.FlipAngle = 500, 12, 90
    image.ImageOrientationPatient, image.PixelSpacing = list(AXIAL), [0.9, 1.1]
    image.SliceThickness = image.SpacingBetweenSlices = 4
    image.ImagePositionPatient = [float(part) for part in position]
    image.Rows, image.Columns, image.PixelData = *plane.shape, plane.tobytes()
    for keyword, value in values.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    path = folder / f"{name}.dcm"
    folder.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def series(
    folder: Path,
    name: str,
    voxels: NDArray[np.uint16],
    orientation: tuple[float, ...] = AXIAL,
    step_mm: float = 4.0,
    order: Iterable[int] | None = None,
    first: int = 1,
    **values: Any,
) -> list[Path]:
    """Write a stack (slices, rows, columns) along its normal; ``order`` are the slices that are written, in order."""
    normal = np.cross(orientation[:3], orientation[3:])
    chosen = list(order) if order is not None else list(range(len(voxels)))
    return [
        slice_(
            folder,
            f"{name}-{index}",
            first + number,
            np.array([-30.0, -20, 10]) + normal * step_mm * index,
            voxels[index],
            **{"ImageOrientationPatient": list(orientation), **values},
        )
        for number, index in enumerate(chosen)
    ]


def _group(**values: Any) -> list[Dataset]:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return [item]


def structure_set(
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
        series_uid: of the series it refers to: "" for that of :func:`series`, None for none.
        frame_uid: frame of reference, None for that of :func:`series`.
    """
    image = _new(RTStructureSetStorage, path.name)
    for keyword in (
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "FrameOfReferenceUID",
    ):
        delattr(image, keyword)
    image.Modality, image.StructureSetLabel = "RTSTRUCT", "made up"
    frame = frame_uid or generate_uid(entropy_srcs=["frame"])
    referenced = _group(SeriesInstanceUID=series_uid or generate_uid(entropy_srcs=["series"]))
    image.SeriesInstanceUID = generate_uid(entropy_srcs=["structures"])
    image.ReferencedFrameOfReferenceSequence = _group(FrameOfReferenceUID=frame)
    if series_uid is not None:
        studies = _group(ReferencedSOPInstanceUID="1.2.3", RTReferencedSeriesSequence=referenced)
        image.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence = studies
    image.StructureSetROISequence = [
        _group(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=frame)[0] for number, name in enumerate(structures, 1)
    ]
    image.ROIContourSequence = [
        _group(
            ReferencedROINumber=number,
            ContourSequence=[
                _group(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(outline),
                    ContourNumber=1 + place,
                    ContourData=[f"{part:.6g}" if abs(part) > 1e-4 else "0" for part in outline.ravel()],
                )[0]
                for place, outline in enumerate(outlines)
            ],
        )[0]
        for number, outlines in enumerate(structures.values(), 1)
    ]
    for keyword, value in values.items():
        setattr(image, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def enhanced(path: Path, frames: list[dict[str, Any]], orientation: tuple[float, ...] = AXIAL, **values: Any) -> Path:
    """Write an enhanced MR image.

    Args:
        frames: each with ``plane`` (rows, columns), ``offset`` mm along the normal, perhaps ``echo``, ``time``, ``b``, ``stack``.
    """
    image = _new(EnhancedMRImageStorage, path.name)
    image.InstanceNumber, image.NumberOfFrames, image.ImageType = 1, len(frames), ["ORIGINAL", "PRIMARY", "T1", "NONE"]
    image.ComplexImageComponent, image.AcquisitionContrast, image.MRAcquisitionType = "MAGNITUDE", "T1", "3D"
    normal = np.cross(orientation[:3], orientation[3:])
    shared = Dataset()
    shared.PixelMeasuresSequence = _group(PixelSpacing=[0.9, 1.1], SliceThickness=4, SpacingBetweenSlices=4)
    shared.PlaneOrientationSequence = _group(ImageOrientationPatient=list(orientation))
    shared.MRTimingAndRelatedParametersSequence = _group(RepetitionTime=500.0, FlipAngle=90.0)
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = []
    image.DimensionIndexSequence = [
        _group(DimensionIndexPointer=tag_for_keyword(keyword), FunctionalGroupPointer=tag_for_keyword("FrameContentSequence"))[0]
        for keyword in ("StackID", "TemporalPositionIndex", "InStackPositionNumber")
    ]
    places = sorted({frame["offset"] for frame in frames})
    for frame in frames:
        own = Dataset()
        stack, time, place = frame.get("stack", 1), frame.get("time", 1), 1 + places.index(frame["offset"])
        own.FrameContentSequence = _group(
            StackID=str(stack), InStackPositionNumber=place, TemporalPositionIndex=time, DimensionIndexValues=[stack, time, place]
        )
        position = np.array([-30.0, -20, 10]) + normal * frame["offset"]
        own.PlanePositionSequence = _group(ImagePositionPatient=[float(part) for part in position])
        own.MREchoSequence = _group(EffectiveEchoTime=float(frame.get("echo", 12)))
        if "b" in frame:
            own.MRDiffusionSequence = _group(DiffusionBValue=float(frame["b"]), DiffusionDirectionality="ISOTROPIC")
        image.PerFrameFunctionalGroupsSequence.append(own)
    planes = np.stack([frame["plane"] for frame in frames])
    image.Rows, image.Columns, image.PixelData = *planes.shape[1:], planes.tobytes()
    for keyword, value in values.items():
        setattr(image, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path
