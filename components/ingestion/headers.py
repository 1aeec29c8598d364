"""From header values to an :class:`~components.ingestion.volume.Acquisition`.

Descriptions are free text that may name the patient, so they are gone before a file is read here: the kind of sequence is told
from the physics (PS3.3 C.8.3), with the usual clinical bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from components.ingestion.deidentify import age_years, sex
from components.ingestion.vocabulary import body_part, scanner, vendor
from components.ingestion.volume import Acquisition

SHORT_TR_MS, SHORT_TE_MS, LONG_TE_MS, FLAIR_TI_MS = 1000.0, 30.0, 70.0, 1500.0


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
    """``"T1-weighted"`` and so on from the timing; None where that does not tell.

    Args:
        technique: DICOM Scanning Sequence codes joined by ``\\``: SE spin echo, GR gradient echo, EP echo planar, IR inversion.
    """
    if repetition_ms is None or echo_ms is None:
        return None
    if inversion_ms is not None and inversion_ms >= FLAIR_TI_MS and echo_ms >= LONG_TE_MS:
        return "FLAIR"
    if "EP" in technique and "SE" not in technique:
        return "T2*-weighted"
    if echo_ms <= SHORT_TE_MS and (repetition_ms <= SHORT_TR_MS or inversion_ms is not None):
        return "T1-weighted"
    if echo_ms >= LONG_TE_MS and repetition_ms > SHORT_TR_MS:
        return "DWI" if "EP" in technique else "T2-weighted"
    return "PD-weighted" if echo_ms <= SHORT_TE_MS and repetition_ms > SHORT_TR_MS else None


def from_dicom(dataset: Dataset, affine: NDArray[np.float64], anatomy: str | None) -> Acquisition:
    """Acquisition of an MR image; of its texts only published words."""
    technique = dataset.get("ScanningSequence", "")
    technique = technique if isinstance(technique, str) else "\\".join(technique)
    times = {name: _number(dataset.get(name)) for name in ("RepetitionTime", "EchoTime", "InversionTime")}
    inversion = times["InversionTime"] or None
    return Acquisition(
        modality="MR",
        sequence=sequence_kind(times["RepetitionTime"], times["EchoTime"], inversion, technique),
        plane=plane_of(affine),
        anatomy=body_part(dataset.get("BodyPartExamined")) or anatomy,
        repetition_time_ms=times["RepetitionTime"],
        echo_time_ms=times["EchoTime"],
        inversion_time_ms=inversion,
        flip_angle_deg=_number(dataset.get("FlipAngle")),
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
