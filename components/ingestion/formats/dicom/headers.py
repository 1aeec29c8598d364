"""DICOM headers: read them, decide whether an object can be ingested, and extract sidecar fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.uid import UID

from components.ingestion.annotations import rt_structures
from components.ingestion.annotations.rt_structures import RT_STRUCTURE_SET_UID
from components.ingestion.formats.dicom.series_splitting import Frame, frames_of
from components.ingestion.formats.gzipped import open_decompressed
from components.ingestion.quarantine import Rejection

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_CLASSES = frozenset({SEGMENTATION, RT_STRUCTURE_SET_UID})
MR_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.4",  # MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR Image Storage
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR Image Storage
    }
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MODALITIES = frozenset(
    "CR CT DX ECG IO KO MG NM OT PR PT PX REG RF RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SM SR US XA".split()  # noqa: SIM905
)
"""Defined terms that a rejection may quote; other text could name the patient."""
_REQUIRED_CLASSIC = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "SeriesInstanceUID",
    "SOPInstanceUID",
)


def read_header(path: Path) -> Dataset:
    """Read the header of a file, plain or gzipped, without pixels; bare data sets without a preamble are read too.

    Raises:
        BadInput: a gzipped file that cannot be decompressed.
    """
    return pydicom.dcmread(open_decompressed(path), stop_before_pixels=True, force=True)


def find_rejection(header: Dataset) -> Rejection | None:
    """Return why an object cannot be ingested, None where it can. Of its texts only published terms are quoted."""
    sop_class = str(header.get("SOPClassUID", "") or "")
    if sop_class == SEGMENTATION:
        return None
    if sop_class == RT_STRUCTURE_SET_UID:
        return rt_structures.find_rejection(header)
    if _may_show_text(header, sop_class):
        return Rejection(
            "burnt-in",
            "its pixels may show the patient's name (burnt-in annotation or secondary capture)",
            "remove it from the folder, or give the original image",
        )
    modality = str(header.get("Modality", "") or "")
    if modality != "MR":
        described = "another modality" if modality else "modality not given"
        if modality in _MODALITIES:
            described = f"modality {modality}"
        return Rejection("not MR", f"{described}, not MR", "give MR images; leave other modalities out")
    if sop_class and sop_class not in MR_CLASSES:
        class_name = UID(sop_class).name if UID(sop_class).name != sop_class else "unknown class"
        return Rejection("not MR", f"no MR image ({class_name})", "remove it from the folder")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        return Rejection("unsupported", "a color image", "give the grayscale image that it was created from")
    if "PerFrameFunctionalGroupsSequence" not in header:
        return _find_missing_geometry(header)
    return None


def _may_show_text(header: Dataset, sop_class: str) -> bool:
    """Return whether the pixels may contain text: a secondary capture, a burnt-in annotation, or a screen save."""
    image_type = " ".join(str(term).upper().replace("_", " ") for term in header.get("ImageType") or ())
    return (
        sop_class.startswith(SECONDARY_CAPTURE)
        or str(header.get("BurnedInAnnotation", "")).upper() == "YES"
        or "SCREEN SAVE" in image_type
        or "SCREENSAVE" in image_type
    )


def _find_missing_geometry(header: Dataset) -> Rejection | None:
    """Return why a classic image has no usable geometry."""
    missing = [name for name in _REQUIRED_CLASSIC if header.get(name) is None or header.get(name) == ""]
    if missing:
        return Rejection("geometry", f"without {', '.join(missing)}", "export the series again with its geometry")
    if int(header.get("NumberOfFrames") or 1) > 1:
        return Rejection("geometry", "several frames without their geometry", "export it as enhanced or as single-frame MR")
    return None


def read_frames(header: Dataset, path: Path) -> tuple[list[Frame], Rejection | None]:
    """Return the frames of a file that :func:`find_rejection` accepts, or why its geometry cannot be used."""
    try:
        frames = frames_of(header, path)
        is_sound = all(_has_sound_geometry(frame) for frame in frames)
    except (KeyError, AttributeError, ValueError, TypeError, IndexError, OverflowError):
        is_sound, frames = False, []
    if not frames or not is_sound:
        reason = "position, orientation or pixel size missing or wrong"
        return [], Rejection("geometry", reason, "export the series again with its geometry")
    return frames, None


def _has_sound_geometry(frame: Frame) -> bool:
    return (
        len(frame.position) == 3
        and len(frame.orientation) == 6
        and len(frame.pixel_mm) == 2
        and min(frame.pixel_mm) > 0
        and min(frame.shape) > 0
        and bool(np.isfinite([*frame.position, *frame.orientation]).all())
        and abs(float(np.linalg.norm(frame.normal)) - 1) < 0.01
    )


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
    return {**seconds, **numbers, **texts, **model}
