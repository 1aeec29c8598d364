"""Controlled vocabularies of the template, and functions that find their words in free text.

The fields ``modality``, ``sequence``, ``plane`` and (as a scale and its value) ``severity_or_grading`` contain only words of these
lists. The lists of structures standardize the answers of a vision-language model.
"""

from __future__ import annotations

import re
from typing import Literal

MODALITIES = ("MRI",)
PLANES = ("axial", "sagittal", "coronal")
Side = Literal["left", "right", "bilateral", "midline"]
SIDES: tuple[Side, ...] = ("left", "right", "bilateral", "midline")
QUALITY = ("no artifacts reported", "motion artifacts", "susceptibility artifacts", "aliasing", "noise", "incomplete coverage")

SCALES: dict[str, tuple[str, ...]] = {
    "BI-RADS": ("0", "1", "2", "3", "4", "4A", "4B", "4C", "5", "6"),
    "PI-RADS": ("1", "2", "3", "4", "5"),
    "LI-RADS": ("1", "2", "3", "4", "5", "M", "TIV"),
    "O-RADS": ("0", "1", "2", "3", "4", "5"),
    "VI-RADS": ("1", "2", "3", "4", "5"),
    "ISUP grade": ("1", "2", "3", "4", "5"),
    "WHO grade": ("1", "2", "3", "4"),
    "Kellgren-Lawrence grade": ("0", "1", "2", "3", "4"),
    "ICRS grade": ("0", "1", "2", "3", "4"),
    "Pfirrmann grade": ("1", "2", "3", "4", "5"),
    "Fazekas grade": ("0", "1", "2", "3"),
    "grade": ("1", "2", "3", "4"),
}
"""Published grading scales and their values; Roman numerals are read as Arabic ones."""
DEGREES = ("normal", "minimal", "mild", "moderate", "severe", "low-grade", "high-grade", "partial", "complete")
_ROMAN = {"I": "1", "II": "2", "III": "3", "IV": "4", "V": "5"}

STRUCTURES: dict[str, tuple[str, ...]] = {
    "bony_structures": (
        "skull",
        "vertebral bodies",
        "femur",
        "tibia",
        "fibula",
        "patella",
        "sacrum",
        "pelvis",
        "ribs",
        "sternum",
        "mandible",
        "humerus",
    ),
    "articular_structures": (
        "articular cartilage",
        "meniscus",
        "medial meniscus",
        "lateral meniscus",
        "intervertebral discs",
        "synovium",
        "labrum",
    ),
    "soft_tissues_and_musculature": ("muscles", "tendons", "subcutaneous fat", "scalp", "skin", "fat pad", "fibroglandular tissue"),
    "organs_or_central_structures": (
        "brain parenchyma",
        "gray matter",
        "white matter",
        "basal ganglia",
        "thalamus",
        "brainstem",
        "cerebellum",
        "hippocampus",
        "liver",
        "spleen",
        "kidneys",
        "pancreas",
        "prostate",
        "peripheral zone",
        "transition zone",
        "uterus",
        "bladder",
        "left ventricle",
        "right ventricle",
        "myocardium",
        "breast",
        "lungs",
    ),
    "neurovascular_or_connective_structures": (
        "spinal cord",
        "cranial nerves",
        "nerve roots",
        "anterior cruciate ligament",
        "posterior cruciate ligament",
        "collateral ligaments",
        "aorta",
        "inferior vena cava",
        "portal vein",
        "dural sinuses",
    ),
    "spaces_or_cavities_or_joint_compartments": (
        "ventricles",
        "cerebrospinal fluid spaces",
        "spinal canal",
        "joint space",
        "paranasal sinuses",
        "orbits",
        "atria",
        "seminal vesicles",
    ),
}
"""Structures that a vision-language model may name in each field of section 2."""

_SCALE = {
    "BI-RADS": r"BI-?\s?RADS(?:\s+(?:category|score))?",
    "PI-RADS": r"PI-?\s?RADS(?:\s+(?:category|score))?",
    "LI-RADS": r"(?:LI-?\s?RADS(?:\s+(?:category|score))?(?:\s+LR)?|LR)-?",
    "O-RADS": r"O-?\s?RADS",
    "VI-RADS": r"VI-?\s?RADS",
    "ISUP grade": r"ISUP(?:\s+grade(?:\s+group)?)?",
    "WHO grade": r"WHO(?:\s+(?:CNS\s+)?grade)?",
    "Kellgren-Lawrence grade": r"(?:Kellgren[ -](?:and[ -])?Lawrence|KL)(?:\s+grade)?",
    "ICRS grade": r"ICRS(?:\s+grade)?",
    "Pfirrmann grade": r"Pfirrmann(?:\s+grade)?",
    "Fazekas grade": r"Fazekas(?:\s+(?:grade|score))?",
    "grade": r"grade",
}
_READ = {
    scale: re.compile(rf"\b{start}\s*[:=]?\s*(TIV|IV|I{{1,3}}|V|M|[0-6][ABC]?)(?!\w|\.\d)", re.IGNORECASE)
    for scale, start in _SCALE.items()
}


def parse_severity(text: str) -> str | None:
    """Return the first grading in a text in its canonical form (``"BIRADS 4"`` -> ``"BI-RADS 4"``), else the first degree, else
    None.

    A value that is not on its scale (PI-RADS 7) is ignored.
    """
    gradings: list[tuple[int, str]] = []
    for scale, pattern in _READ.items():
        for match in pattern.finditer(text):
            value = match.group(1).upper()
            value = value if value in SCALES[scale] else _ROMAN.get(value, value)
            if value in SCALES[scale]:
                gradings.append((match.start(), f"{scale} {value}"))
    if gradings:
        return min(gradings)[1]
    degree = re.search(rf"\b({'|'.join(DEGREES[1:])})\b", text, re.IGNORECASE)
    return degree.group(1).lower() if degree else None


def severity_pattern() -> str:
    """Return the regular expression (ECMA 262, as JSON schema requires) of the field ``severity_or_grading``; empty is allowed."""
    scales = [f"{scale} ({'|'.join(values)})" for scale, values in SCALES.items()]
    return "^(|" + "|".join([*DEGREES, *scales]) + ")$"


def parse_laterality(text: str) -> Side | None:
    """Return the side that a text names, None if it names none."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    if "bilateral" in words or "both" in words or {"left", "right"} <= words:
        return "bilateral"
    return next((side for side in SIDES if side in words), None)
