"""Generated patients as DICOM MR series with DICOM Segmentations.

The headers contain identifying text on purpose: ingestion must remove it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage, generate_uid
from pydicom.valuerep import DA, DT, TM
from typing_extensions import override

from components.curation.text.structure_names import is_lesion
from components.samples.cohort import CohortForm
from components.samples.phantom import Anatomy, Patient, Protocol

if TYPE_CHECKING:
    import highdicom as hd

DATE, TIME = DA("20240506"), TM("070809")
LPS = np.array([-1.0, -1.0, 1.0])
"""RAS+ -> the directions of DICOM."""
SEGMENT_TYPES = {"gray matter": codes.SCT.GrayMatter, "white matter": codes.SCT.WhiteMatter}


def _uid(*parts: Any) -> UID:
    return generate_uid(entropy_srcs=["omnimri-sample", *map(str, parts)])


def _study(anatomy: Anatomy, patient: Patient) -> Dataset:
    """Return the attributes that all images of a patient share."""
    study = Dataset()
    study.PatientName, study.PatientID = f"Doe^Dicom{patient.number:02d}", f"DCM-{patient.number:04d}"
    study.PatientBirthDate, study.PatientSex, study.PatientAge = "19700203", patient.sex, f"{patient.age_years:03d}Y"
    study.PatientWeight = 70
    study.StudyDate = study.SeriesDate = study.ContentDate = study.AcquisitionDate = DATE
    study.StudyTime = study.SeriesTime = study.ContentTime = study.AcquisitionTime = TIME
    study.AccessionNumber, study.StudyID = f"ACC{patient.number:06d}", "1"
    study.ReferringPhysicianName, study.InstitutionName = "Referrer^Rita", "Sample Hospital"
    study.StudyInstanceUID, study.FrameOfReferenceUID = _uid("study", *patient.seed), _uid("frame", *patient.seed)
    study.Manufacturer, study.ManufacturerModelName, study.DeviceSerialNumber = "SIEMENS", "Skyra", "45123"
    study.StationName, study.Modality, study.MagneticFieldStrength = "MRC45123", "MR", 3
    study.BodyPartExamined, study.PatientPosition = anatomy.name.split()[0].upper(), "HFS"
    study.PositionReferenceIndicator = ""
    return study


def create_mr_image(
    anatomy: Anatomy, patient: Patient, protocol: Protocol, series: int, index: int, pixels: NDArray[np.uint16]
) -> FileDataset:
    """Create one MR image (PS3.3 A.4).

    Args:
        anatomy, patient, protocol: of the series.
        series: Series Number.
        index: slice from 0.
        pixels: (rows, columns).
    """
    meta, grid = FileMetaDataset(), patient.grid
    meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
    meta.MediaStorageSOPInstanceUID = _uid("image", *patient.seed, protocol.sequence, index)
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.update(_study(anatomy, patient))
    image.SOPClassUID, image.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
    image.SeriesInstanceUID = _uid("series", *patient.seed, protocol.sequence)
    image.SeriesNumber, image.InstanceNumber, image.AcquisitionNumber = series, index + 1, 1
    image.SeriesDescription = f"{grid.plane[:2].upper()} {protocol.suffix[:2]} Doe"
    image.ProtocolName = f"{grid.plane[:2]}_{protocol.suffix[:2].lower()}"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions, image.MRAcquisitionType = protocol.technique, "SK", "", "2D"
    image.RepetitionTime, image.EchoTime = protocol.repetition_ms, protocol.echo_ms
    image.EchoTrainLength, image.FlipAngle = 1, protocol.flip_deg
    affine = grid.affine
    position = affine[:3, 3] + affine[:3, 0] * index
    image.ImagePositionPatient = (LPS * position).tolist()
    image.ImageOrientationPatient = [*(LPS * affine[:3, 2] / grid.pixel_mm), *(LPS * affine[:3, 1] / grid.pixel_mm)]
    image.PixelSpacing, image.SliceThickness = [grid.pixel_mm, grid.pixel_mm], grid.slice_mm
    image.SpacingBetweenSlices = grid.slice_mm
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows, image.Columns = pixels.shape
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 0
    image.PixelData = pixels.tobytes()
    return image


def _segment(number: int, label: str) -> hd.seg.SegmentDescription:
    import highdicom as hd

    category, kind = (
        (codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Lesion)
        if is_lesion(label)
        else (codes.SCT.AnatomicalStructure, SEGMENT_TYPES.get(label, codes.SCT.Organ))
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def _segmentation(anatomy: Anatomy, patient: Patient, images: list[FileDataset]) -> hd.seg.Segmentation:
    """Create the DICOM Segmentation (PS3.3 A.51) of the slices of a series; its segments are the structures that occur."""
    import highdicom as hd  # takes a second, and a cohort that exists is not generated again

    present = [int(value) for value in np.unique(patient.labels) if value]
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[present] = np.arange(1, len(present) + 1)
    segmentation = hd.seg.Segmentation(
        source_images=images,
        pixel_array=numbers[patient.labels],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_segment(number, anatomy.label_map[value]) for number, value in enumerate(present, start=1)],
        series_instance_uid=_uid("seg-series", *patient.seed),
        series_number=9,
        sop_instance_uid=_uid("seg", *patient.seed),
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
        item.DimensionOrganizationUID = _uid("dimension", *patient.seed)
    for item in segmentation.get("DimensionIndexSequence", []):
        item.DimensionOrganizationUID = _uid("dimension", *patient.seed)
    return segmentation


class DicomForm(CohortForm):
    """One folder for each patient, as exported by an archive: a series for each sequence, and a segmentation."""

    index = 0

    @override
    def key(self, number: int) -> str:
        return f"DCM-{number:04d}"

    @override
    def target(self, folder: Path, number: int) -> Path:
        return folder / self.key(number)

    @override
    def write(self, anatomy: Anatomy, patient: Patient, target: Path) -> None:
        for series, protocol in enumerate(anatomy.protocols, start=1):
            planes = patient.simulate_magnitude(protocol.sequence)
            images = [create_mr_image(anatomy, patient, protocol, series, index, plane) for index, plane in enumerate(planes)]
            for image in images:
                image.save_as(target / f"S{series}I{int(image.InstanceNumber):03d}.dcm", enforce_file_format=True)
            if series == 1:
                _segmentation(anatomy, patient, images).save_as(target / "SEG.dcm")
