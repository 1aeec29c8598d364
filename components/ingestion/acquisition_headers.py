"""From header values to an :class:`~components.ingestion.volume.Acquisition`.

Descriptions are free text that may name the patient, so they are gone before a file is read here: the kind of sequence is told
from the physics and the codes (PS3.3 C.8.3), by the rules of :mod:`components.ingestion.sequence_classification`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.deidentification.allowlists import body_part, scanner, vendor
from components.ingestion.deidentification.deidentify import age_years, sex
from components.ingestion.sequence_classification import Timing, classify
from components.ingestion.volume import Acquisition


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None


def plane_of(affine: NDArray[np.float64]) -> str:
    """The anatomical plane that the slice normal is nearest to; ``affine`` maps (d, h, w) to RAS+ mm."""
    normal = np.cross(affine[:3, 1], affine[:3, 2])
    return ("sagittal", "coronal", "axial")[int(np.abs(normal).argmax())]


def sequence_kind(repetition_ms: float | None, echo_ms: float | None, inversion_ms: float | None, technique: str) -> str | None:
    """``"T1-weighted"`` and so on from the timing alone; None where that does not tell.

    Args:
        technique: DICOM Scanning Sequence codes joined by ``\\``: SE spin echo, GR gradient echo, EP echo planar, IR inversion.
    """
    return classify(Timing(repetition_ms, echo_ms, inversion_ms, technique=frozenset(technique.split("\\")) - {""}))


def _codes(value: Any) -> frozenset[str]:
    """The codes of a DICOM CS attribute, single or several."""
    return frozenset(str(code).upper() for code in ([value] if isinstance(value, str) else value or []) if code)


def _timing(dataset: Dataset) -> Timing:
    """What the rules of :mod:`components.ingestion.sequence_classification` look at, of a DICOM header."""
    return Timing(
        repetition_ms=_number(dataset.get("RepetitionTime")),
        echo_ms=_number(dataset.get("EchoTime")),
        inversion_ms=_number(dataset.get("InversionTime")) or None,
        flip_deg=_number(dataset.get("FlipAngle")),
        technique=_codes(dataset.get("ScanningSequence")),
        variant=_codes(dataset.get("SequenceVariant")),
        options=_codes(dataset.get("ScanOptions")),
        image_type=_codes(dataset.get("ImageType")),
        b_value=_number(dataset.get("DiffusionBValue")),
        angio=dataset.get("AngioFlag") == "Y",
    )


def from_dicom(dataset: Dataset, affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    """Acquisition of an MR image; of its texts only published words."""
    timing = _timing(dataset)
    return Acquisition(
        modality="MR",
        sequence=classify(timing),
        plane=plane_of(affine),
        anatomy=body_part(dataset.get("BodyPartExamined")) or anatomy,
        repetition_time_ms=timing.repetition_ms,
        echo_time_ms=timing.echo_ms,
        inversion_time_ms=timing.inversion_ms,
        flip_angle_deg=timing.flip_deg,
        field_strength_t=_number(dataset.get("MagneticFieldStrength")),
        vendor=vendor(dataset.get("Manufacturer")),
        scanner=scanner(dataset.get("ManufacturerModelName")),
        sex=sex(dataset.get("PatientSex")),
        age_years=age_years(dataset.get("PatientAge")),
    )


def from_sidecar(sidecar: Mapping[str, Any], affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    """Acquisition from a BIDS sidecar (times in seconds there)."""

    def milliseconds(name: str) -> float | None:
        seconds = _number(sidecar.get(name))
        return None if seconds is None else round(seconds * 1000, 6)

    repetition, echo, inversion = (milliseconds(name) for name in ("RepetitionTime", "EchoTime", "InversionTime"))
    return Acquisition(
        modality="MR",
        sequence=sidecar.get("Sequence") or sequence_kind(repetition, echo, inversion, ""),
        plane=plane_of(affine),
        anatomy=body_part(sidecar.get("BodyPartExamined")) or anatomy,
        repetition_time_ms=repetition,
        echo_time_ms=echo,
        inversion_time_ms=inversion,
        flip_angle_deg=_number(sidecar.get("FlipAngle")),
        field_strength_t=_number(sidecar.get("MagneticFieldStrength")),
        vendor=vendor(sidecar.get("Manufacturer")),
        scanner=scanner(sidecar.get("ManufacturersModelName")),
        sex=sex(sidecar.get("PatientSex")),
        age_years=age_years(sidecar.get("PatientAge")),
    )
