"""DICOM headers: read them, decide whether an object can be ingested, and extract sidecar fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import UID

from components.ingestion.annotations import rt_structures
from components.ingestion.annotations.rt_structures import RT_STRUCTURE_SET_UID
from components.ingestion.formats.dicom import fast_elements, image_content
from components.ingestion.formats.dicom.frames import Frame, frames_of
from components.ingestion.formats.nifti_header import VOXEL_SIZE_RANGE_MM
from components.ingestion.quarantine import Rejection
from components.ingestion.sequence_classification import classify_diffusion

SEGMENTATION_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)
_SURFACE_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.5"
LABEL_CLASSES = SEGMENTATION_CLASSES | {RT_STRUCTURE_SET_UID}
MR_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image Storage
    }
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MODALITIES = frozenset(
    "CR CT DX ECG IO KO MG NM OT PR PT PX REG RF RTDOSE RTIMAGE RTPLAN RTSTRUCT RWV SC SEG SM SR US XA".split()  # noqa: SIM905
)
"""Defined terms that a rejection may quote; other text could name the patient."""
_MAX_COSINE_ERROR = 0.01
_REQUIRED_UIDS = ("SeriesInstanceUID", "SOPInstanceUID")
_REQUIRED_TEXTS = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", *_REQUIRED_UIDS)


def find_rejection(header: Dataset, has_pixels: bool = True) -> Rejection | None:
    """Return why an object cannot be ingested, None where it can. Of its texts only published terms are quoted.

    Args:
        has_pixels: whether pixel data follows the header in its file.
    """
    sop_class = str(header.get("SOPClassUID", "") or "")
    if sop_class in SEGMENTATION_CLASSES:
        return None if has_pixels else _CUT_OFF
    if sop_class == RT_STRUCTURE_SET_UID:
        return rt_structures.find_rejection(header)
    if _may_show_text(header, sop_class):
        return Rejection(
            "burnt-in",
            "its pixels may show the patient's name (burnt-in annotation or secondary capture)",
            "remove it from the folder, or give the original image",
        )
    return _find_other_class(header, sop_class, has_pixels) or _find_unusable_image(header, has_pixels)


_CUT_OFF = Rejection(
    "unreadable", "ends before its pixel data: cut off, or exported without pixels", "get the file again, with its pixels"
)


def _find_other_class(header: Dataset, sop_class: str, has_pixels: bool) -> Rejection | None:
    """Return why an object is no MR image."""
    if sop_class == _SURFACE_SEGMENTATION:
        return Rejection(
            "label", "a surface segmentation, which labels no pixels", "export it as a segmentation on the image's grid"
        )
    modality = str(header.get("Modality", "") or "")
    if modality != "MR":
        if len(modality) < 2 and not has_pixels:  # every code has at least two letters: "M" is cut off
            return Rejection(
                "unreadable", "a DICOM object without modality and pixels: cut off, or no image", "get the file again, if it is one"
            )
        described = "another modality" if modality else "modality not given"
        if modality in _MODALITIES:
            described = f"modality {modality}"
        return Rejection("not MR", f"{described}, not MR", "give MR images; leave other modalities out")
    if sop_class and sop_class not in MR_CLASSES:
        class_name = UID(sop_class).name if UID(sop_class).name != sop_class else "unknown class"
        return Rejection("not MR", f"no MR image ({class_name})", "remove it from the folder")
    return None


def _find_unusable_image(header: Dataset, has_pixels: bool) -> Rejection | None:
    """Return why the pixels or the geometry of an MR image cannot be used."""
    if not has_pixels:
        return _CUT_OFF
    if color := image_content.find_color(header):
        return Rejection("not magnitude", f"a color image ({color})", "give the grayscale image that it was created from")
    if image_content.is_inverted(header):
        return Rejection(
            "not magnitude",
            "an inverted image (low values are white: MONOCHROME1 or an inverse lookup table)",
            "export it as MONOCHROME2",
        )
    if fault := _find_value_fault(header):
        return fault
    if "PerFrameFunctionalGroupsSequence" not in header:
        return _find_missing_geometry(header)
    groups, frames = len(header.PerFrameFunctionalGroupsSequence), int(header.get("NumberOfFrames") or 1)
    if groups != frames:
        return Rejection("geometry", f"functional groups of {groups} frames for {frames} frames", "export the image again")
    missing = [name for name in _REQUIRED_UIDS if not header.get(name)]
    return Rejection("geometry", f"without {', '.join(missing)}", "export the image again") if missing else None


def _find_value_fault(header: Dataset) -> Rejection | None:
    """Return why stored values cannot be converted to signal intensities: a slope of zero, no number, or a lookup table."""
    if header.get("ModalityLUTSequence"):
        return Rejection("unsupported", "values that need a lookup table (Modality LUT Sequence)", "export the image with a slope")
    items = [header]
    for groups in (*header.get("PerFrameFunctionalGroupsSequence", ()), *header.get("SharedFunctionalGroupsSequence", ())):
        items += groups.get("PixelValueTransformationSequence", ())
    for item in items:
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            if not fast_elements.text(item, keyword):
                continue
            value = fast_elements.number(item, keyword)
            if value is None or not np.isfinite(value):
                return Rejection("unsupported", f"{keyword} is not one number", "export the image again")
            if keyword == "RescaleSlope" and value == 0:
                return Rejection(
                    "unsupported",
                    "Rescale Slope is 0: all voxels would be equal",
                    "export the image with its slope, or without one",
                )
    return None


def _may_show_text(header: Dataset, sop_class: str) -> bool:
    """Return whether the pixels may contain text: a secondary capture, a burnt-in annotation, or a screen save."""
    image_type = fast_elements.text(header, "ImageType").upper().replace("_", " ").replace("\\", " ")
    return (
        sop_class == SECONDARY_CAPTURE
        or sop_class.startswith(f"{SECONDARY_CAPTURE}.")
        or str(header.get("BurnedInAnnotation", "")).upper() == "YES"
        or "SCREEN SAVE" in image_type
        or "SCREENSAVE" in image_type
    )


def _find_missing_geometry(header: Dataset) -> Rejection | None:
    """Return why a classic image has no usable geometry."""
    missing = [name for name in _REQUIRED_TEXTS if not fast_elements.text(header, name)]
    missing += [name for name in ("Rows", "Columns") if fast_elements.short(header, name) is None]
    if missing:
        return Rejection("geometry", f"without {', '.join(missing)}", "export the series again with its geometry")
    if int(header.get("NumberOfFrames") or 1) > 1:
        return Rejection("geometry", "several frames without their geometry", "export it as enhanced or as single-frame MR")
    return None


def read_frames(header: Dataset, path: Path) -> tuple[list[Frame], Rejection | None]:
    """Return the frames of a file that :func:`find_rejection` accepts, or why its geometry cannot be used."""
    try:
        frames = frames_of(header, path)
        fault = next(filter(None, map(_geometry_fault, frames)), "" if frames else "no frames")
    except (KeyError, AttributeError, ValueError, TypeError, IndexError, OverflowError):
        fault, frames = "a position, orientation or pixel size that is missing or no number", []
    if fault:
        return [], Rejection("geometry", fault, "export the series again with its geometry")
    return frames, None


def _geometry_fault(frame: Frame) -> str:
    """Return what is wrong with the geometry of a frame; "" for nothing."""
    if (len(frame.position), len(frame.orientation), len(frame.pixel_mm)) != (3, 6, 2):
        return "a position, orientation or pixel size with another number of values than the standard's"
    if not np.isfinite([*frame.position, *frame.orientation, *frame.pixel_mm]).all():
        return "a position, orientation or pixel size that is no number"
    smallest, largest = VOXEL_SIZE_RANGE_MM
    if not (smallest <= min(frame.pixel_mm) and max(frame.pixel_mm) <= largest):
        return f"pixels of implausible size: {frame.pixel_mm[0]:.3g} x {frame.pixel_mm[1]:.3g} mm"
    if min(frame.shape) < 1:
        return "an image without rows or columns"
    row, column = np.array(frame.orientation[:3]), np.array(frame.orientation[3:])
    errors = (float(np.linalg.norm(row)) - 1, float(np.linalg.norm(column)) - 1, float(row @ column))
    if max(map(abs, errors)) > _MAX_COSINE_ERROR:
        return "direction cosines of rows and columns that are no perpendicular unit vectors"
    return ""


def sidecar_fields(header: Dataset, index: int = 0) -> dict[str, object]:
    """Return the fields of a frame's header that the sidecar of its NIfTI may have (BIDS names and units)."""
    groups = (
        header.get("PerFrameFunctionalGroupsSequence", [Dataset()])[index],
        *header.get("SharedFunctionalGroupsSequence", ()),
    )
    items = [header]
    for group in groups:
        for name in ("MREchoSequence", "MRTimingAndRelatedParametersSequence", "MRModifierSequence", "FrameAnatomySequence"):
            items += group.get(name, ())

    def get(*names: str) -> Any:
        values = (item.get(name) for name in names for item in items)
        return next((value for value in values if value not in (None, "")), None)

    times_ms = {
        "RepetitionTime": get("RepetitionTime"),
        "EchoTime": get("EchoTime", "EffectiveEchoTime"),
        "InversionTime": get("InversionTime", "InversionTimes"),
    }
    seconds = {name: float(value) / 1000 for name, value in times_ms.items() if value and not hasattr(value, "__iter__")}
    numbers = {name: float(get(name)) for name in ("MagneticFieldStrength", "FlipAngle") if get(name)}
    text_names = ("Modality", "Manufacturer", "BodyPartExamined", "PatientSex", "PatientAge")
    texts = {name: str(get(name)) for name in text_names if get(name)}
    model = {"ManufacturersModelName": str(get("ManufacturerModelName"))} if get("ManufacturerModelName") else {}
    sequence = diffusion_sequence(header, index)
    return {**seconds, **numbers, **texts, **model, **({"Sequence": sequence} if sequence else {})}


def diffusion_sequence(header: Dataset, index: int = 0) -> str:
    """Return "ADC" or "DWI" for a frame that its image type or b-value declares to be one; "" for any other."""
    groups = header.get("PerFrameFunctionalGroupsSequence")
    items = [*((groups[index],) if groups else ()), *header.get("SharedFunctionalGroupsSequence", ())]
    diffusion = [item for group in items for item in group.get("MRDiffusionSequence", ())]
    types = [item.get("FrameType") for group in items for item in group.get("MRImageFrameTypeSequence", ())]
    values = [str(value) for image_type in (*types, header.get("ImageType")) for value in image_type or ()]
    b_value = next((item.get("DiffusionBValue") for item in (*diffusion, header) if item.get("DiffusionBValue") is not None), None)
    return classify_diffusion(frozenset(value.upper() for value in values), None if b_value is None else float(b_value)) or ""
