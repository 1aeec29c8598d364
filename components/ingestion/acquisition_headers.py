"""Convert header values to an :class:`~components.ingestion.volume.Acquisition`.

Descriptions are free text that may name the patient, so de-identification removes them before this module reads a file.
:mod:`components.ingestion.sequence_classification` derives the sequence from acquisition parameters and codes (PS3.3 C.8.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.body_parts import examined_part
from components.ingestion.deidentification.allowlists import allowed_scanner, allowed_vendor
from components.ingestion.deidentification.deidentify import parse_age_years, parse_sex
from components.ingestion.sequence_classification import SequenceParameters, classify_sequence
from components.ingestion.volume import Acquisition

MAX_MS = {"RepetitionTime": 6e4, "EchoTime": 2e3, "InversionTime": 6e4}
"""Longest plausible times of a sequence, with a wide margin."""
MAX_TESLA = 25.0
"""Twice the field of the strongest scanner for people."""


def _parse_number(value: Any) -> float | None:
    """Return a finite number, or None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def _parse_ms(value: Any, longest: float) -> float | None:
    """Return a time in milliseconds; None for one that can only be in another unit."""
    time = _parse_number(value)
    return time if time is not None and 0 <= time <= longest else None


def _parse_tesla(value: Any) -> float | None:
    """Return a field strength in tesla; None for a number that can only be gauss, millitesla or megahertz."""
    tesla = _parse_number(value)
    return tesla if tesla is not None and 0 < tesla <= MAX_TESLA else None


def slice_plane(affine: NDArray[np.float64]) -> str:
    """Return the anatomical plane whose normal is nearest to the slice normal; ``affine`` maps (d, h, w, 1) to RAS+ mm."""
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def classify_timing(repetition_ms: float | None, echo_ms: float | None, inversion_ms: float | None, technique: str) -> str | None:
    """Return the sequence from TR, TE and TI alone; None if they are inconclusive.

    Args:
        technique: DICOM Scanning Sequence codes joined by ``\\``: SE spin echo, GR gradient echo, EP echo planar, IR inversion.
    """
    codes = frozenset(technique.split("\\")) - {""}
    return classify_sequence(SequenceParameters(repetition_ms, echo_ms, inversion_ms, technique=codes))


def _code_set(value: Any) -> frozenset[str]:
    """Return the codes of a DICOM CS attribute with one or more values, upper case."""
    return frozenset(str(code).upper() for code in ([value] if isinstance(value, str) else value or []) if code)


def _read_parameters(dataset: Dataset) -> SequenceParameters:
    """Return the sequence parameters of a DICOM header."""
    return SequenceParameters(
        repetition_ms=_parse_ms(dataset.get("RepetitionTime"), MAX_MS["RepetitionTime"]),
        echo_ms=_parse_ms(dataset.get("EchoTime"), MAX_MS["EchoTime"]),
        inversion_ms=_parse_ms(dataset.get("InversionTime"), MAX_MS["InversionTime"]) or None,
        flip_deg=_parse_number(dataset.get("FlipAngle")),
        technique=_code_set(dataset.get("ScanningSequence")),
        variant=_code_set(dataset.get("SequenceVariant")),
        options=_code_set(dataset.get("ScanOptions")),
        image_type=_code_set(dataset.get("ImageType")),
        b_value=_parse_number(dataset.get("DiffusionBValue")),
        angio=dataset.get("AngioFlag") == "Y",
    )


def acquisition_from_dicom(dataset: Dataset, affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    """Return the acquisition of a DICOM MR image, with published terms only.

    Args:
        affine: (4, 4), maps index (d, h, w, 1) to RAS+ mm.
        anatomy: of the card, used if the header states none, or only the region that it is in.
    """
    parameters = _read_parameters(dataset)
    return Acquisition(
        modality="MR",
        sequence=classify_sequence(parameters),
        plane=slice_plane(affine),
        anatomy=examined_part(dataset.get("BodyPartExamined"), anatomy),
        repetition_time_ms=parameters.repetition_ms,
        echo_time_ms=parameters.echo_ms,
        inversion_time_ms=parameters.inversion_ms,
        flip_angle_deg=parameters.flip_deg,
        field_strength_t=_parse_tesla(dataset.get("MagneticFieldStrength")),
        vendor=allowed_vendor(dataset.get("Manufacturer")),
        scanner=allowed_scanner(dataset.get("ManufacturerModelName")),
        sex=parse_sex(dataset.get("PatientSex")),
        age_years=parse_age_years(dataset.get("PatientAge")),
    )


def acquisition_from_sidecar(sidecar: Mapping[str, Any], affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    """Return the acquisition from a BIDS sidecar, whose times are in seconds.

    Args:
        affine: (4, 4), maps index (d, h, w, 1) to RAS+ mm.
        anatomy: of the card, used if the sidecar states none, or only the region that it is in.
    """

    def milliseconds(name: str) -> float | None:
        seconds = _parse_number(sidecar.get(name))
        return None if seconds is None else round(seconds * 1000, 6)

    repetition, echo, inversion = (milliseconds(name) for name in ("RepetitionTime", "EchoTime", "InversionTime"))
    return Acquisition(
        modality="MR",
        sequence=sidecar.get("Sequence") or classify_timing(repetition, echo, inversion, ""),
        plane=slice_plane(affine),
        anatomy=examined_part(sidecar.get("BodyPartExamined"), anatomy),
        repetition_time_ms=repetition,
        echo_time_ms=echo,
        inversion_time_ms=inversion,
        flip_angle_deg=_parse_number(sidecar.get("FlipAngle")),
        field_strength_t=_parse_tesla(sidecar.get("MagneticFieldStrength")),
        vendor=allowed_vendor(sidecar.get("Manufacturer")),
        scanner=allowed_scanner(sidecar.get("ManufacturersModelName")),
        sex=parse_sex(sidecar.get("PatientSex")),
        age_years=parse_age_years(sidecar.get("PatientAge")),
    )
