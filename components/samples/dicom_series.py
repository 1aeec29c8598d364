"""Write the synthetic cohort as DICOM MR series with DICOM Segmentations.

The headers contain identifying text on purpose: ingestion must remove it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DA, DT, TM

from components.samples.cohort import GRAY_MATTER, LESION, WHITE_MATTER, Brain, Grid, generate_brain, simulate_magnitude

GRID = Grid(slices=20, pixels=108, slice_mm=6.0, pixel_mm=2.0)
COHORT = 0
TIMES = {"T1-weighted": (550.0, 11.0), "T2-weighted": (4200.0, 92.0)}
"""Sequence -> (repetition time ms, echo time ms)."""
DATE, TIME = DA("20240506"), TM("070809")


def _uid(*parts: Any) -> UID:
    return generate_uid(entropy_srcs=["omnimri-sample", *map(str, parts)])


def _study(patient: Brain) -> Dataset:
    """Return the attributes that all images of a patient share."""
    study = Dataset()
    study.PatientName, study.PatientID = f"Doe^Dicom{patient.number:02d}", f"DCM-{patient.number:04d}"
    study.PatientBirthDate, study.PatientSex, study.PatientAge = "19700203", patient.sex, f"{patient.age_years:03d}Y"
    study.PatientWeight = 70
    study.StudyDate = study.SeriesDate = study.ContentDate = study.AcquisitionDate = DATE
    study.StudyTime = study.SeriesTime = study.ContentTime = study.AcquisitionTime = TIME
    study.AccessionNumber, study.StudyID = f"ACC{patient.number:06d}", "1"
    study.ReferringPhysicianName, study.InstitutionName = "Referrer^Rita", "Sample Hospital"
    study.StudyInstanceUID, study.FrameOfReferenceUID = _uid("study", patient.number), _uid("frame", patient.number)
    study.Manufacturer, study.ManufacturerModelName, study.DeviceSerialNumber = "SIEMENS", "Skyra", "45123"
    study.StationName, study.Modality, study.MagneticFieldStrength = "MRC45123", "MR", 3
    study.BodyPartExamined, study.PatientPosition, study.PositionReferenceIndicator = "BRAIN", "HFS", ""
    return study


def create_mr_image(patient: Brain, sequence: str, series: int, index: int, pixels: NDArray[np.uint16]) -> FileDataset:
    """Create one MR image (PS3.3 A.4).

    Args:
        series: Series Number.
        index: slice from 0, inferior to superior.
        pixels: (rows, columns).
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid("image", patient.number, sequence, index)
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.update(_study(patient))
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID = _uid("series", patient.number, sequence)
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = series, index + 1, 1
    image.SeriesDescription, image.ProtocolName = f"AX {sequence[:2]} Doe", f"ax_{sequence[:2].lower()}"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = "SE", "SK", "", "2D"
    image.RepetitionTime, image.EchoTime = TIMES[sequence]
    image.EchoTrainLength, image.FlipAngle = 1, 90
    position = GRID.affine[:3, 3] + GRID.affine[:3, 0] * index
    image.ImagePositionPatient = [-position[0], -position[1], position[2]]
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [GRID.pixel_mm, GRID.pixel_mm], GRID.slice_mm
    image.SpacingBetweenSlices = GRID.slice_mm
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = pixels.tobytes()
    return image


def _segment(number: int, label: str, category: Any, kind: Any) -> hd.seg.SegmentDescription:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def _segmentation(patient: Brain, images: list[FileDataset]) -> hd.seg.Segmentation:
    """Create the DICOM Segmentation (PS3.3 A.51) of the slices of a series."""
    segments = [
        _segment(GRAY_MATTER, "grey matter", codes.SCT.AnatomicalStructure, codes.SCT.GrayMatter),
        _segment(WHITE_MATTER, "white matter", codes.SCT.AnatomicalStructure, codes.SCT.WhiteMatter),
        _segment(LESION, "lesion", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion),
    ]
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=patient.labels,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments[: 3 if patient.has_lesion else 2],
        series_instance_uid=_uid("seg-series", patient.number),
        series_number=9,
        sop_instance_uid=_uid("seg", patient.number),
        instance_number=1,
        manufacturer="OmniMRI",
        manufacturer_model_name="sample",
        software_versions="1",
        device_serial_number="1",
    )
    segmentation.ContentDate = segmentation.InstanceCreationDate = segmentation.SeriesDate = DATE
    segmentation.ContentTime = segmentation.InstanceCreationTime = segmentation.SeriesTime = TIME
    for item in segmentation.ContributingEquipmentSequence:
        item.ContributionDateTime = DT(f"{DATE}{TIME}")
    for item in segmentation.get("DimensionOrganizationSequence", []):
        item.DimensionOrganizationUID = _uid("dimension", patient.number)
    for item in segmentation.get("DimensionIndexSequence", []):
        item.DimensionOrganizationUID = _uid("dimension", patient.number)
    return segmentation


def write_dicom_cohort(folder: Path, patients: int) -> None:
    """Write ``patients`` patients with two series and a segmentation each, as exported by an archive."""
    for number in range(patients):
        patient = generate_brain(number, GRID, COHORT)
        patient_folder = folder / f"DCM-{number:04d}"
        patient_folder.mkdir(parents=True)
        for series, sequence in enumerate(TIMES, start=1):
            pixels = simulate_magnitude(patient.images[sequence], number, sequence)
            images = [create_mr_image(patient, sequence, series, index, plane) for index, plane in enumerate(pixels)]
            for image in images:
                image.save_as(patient_folder / f"S{series}I{int(image.InstanceNumber):03d}.dcm", enforce_file_format=True)
            if series == 1:
                _segmentation(patient, images).save_as(patient_folder / "SEG.dcm")
