"""Filling the template: level 1 from the header, 2 and 3 from label statistics, 4 and 5 from labels, boxes and diagnoses.

Nothing is guessed. Where no source answers, the field stays empty with provenance ``none``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from components.curation.facts import SliceFacts
from components.curation.records import DescriptionRecord
from components.curation.structures import REFERENCE_TISSUE, is_fluid, lesion_values, structure_values, template_field
from components.curation.template import (
    UNKNOWN,
    Description,
    DiagnosticImpression,
    Field,
    ImageModalitySequence,
    PathologicalFindings,
    TissueSignalCharacteristics,
    VisibleAnatomicalStructures,
)
from components.ingestion.volume import Acquisition

BRIGHTER, DARKER = 1.1, 0.9
"""Signal ratios beyond which a lesion is called hyper- or hypointense to the reference tissue."""
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _header(value: str | None) -> Field:
    return Field(text=value, provenance="header") if value else UNKNOWN


def _acquired(acquisition: Acquisition) -> ImageModalitySequence:
    return ImageModalitySequence(
        modality=_header("MRI" if acquisition.modality == "MR" else acquisition.modality),
        sequence=_header(acquisition.sequence),
        plane=_header(acquisition.plane),
    )


def _visible(present: list[str], anatomy: str | None, card_anatomy: str | None) -> VisibleAnatomicalStructures:
    """Labelled structures by field; without labels, the body part that the header (or else the card) names."""
    if present:
        by_field: dict[str, list[str]] = {}
        for name in present:
            by_field.setdefault(template_field(name), []).append(name)
        return VisibleAnatomicalStructures(**{f: Field(text=", ".join(names), provenance="label") for f, names in by_field.items()})
    if anatomy:
        return VisibleAnatomicalStructures(**{template_field(anatomy): Field(text=anatomy, provenance="header")})
    if card_anatomy:
        return VisibleAnatomicalStructures(**{template_field(card_anatomy): Field(text=card_anatomy, provenance="card")})
    return VisibleAnatomicalStructures()


def _signals(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8], label_map: dict[int, str], values: list[int]
) -> list[tuple[str, float]]:
    """(name, median signal relative to the reference tissue) of the labels present; empty without the reference."""
    reference = next((value for value, name in label_map.items() if name.lower() == REFERENCE_TISSUE), None)
    if reference is None or not (labels == reference).any():
        return []
    scale = float(np.median(voxels[labels == reference]))
    if scale <= 0:
        return []
    present = [value for value in values if value != reference and (labels == value).any()]
    return [(label_map[value].lower(), float(np.median(voxels[labels == value])) / scale) for value in present]


def _tissue(
    voxels: NDArray[np.float32], labels: NDArray[np.uint8] | None, label_map: dict[int, str]
) -> TissueSignalCharacteristics:
    if labels is None:
        return TissueSignalCharacteristics()
    normal = [
        f"{name} {ratio:.1f} of {REFERENCE_TISSUE}"
        for name, ratio in _signals(voxels, labels, label_map, structure_values(label_map))
    ]
    abnormal = []
    for name, ratio in _signals(voxels, labels, label_map, lesion_values(label_map)):
        level = "hyperintense" if ratio > BRIGHTER else "hypointense" if ratio < DARKER else "isointense"
        abnormal.append(f"{name} {level} to {REFERENCE_TISSUE}")
    return TissueSignalCharacteristics(
        normal_signal_appearance=Field(text=", ".join(normal), provenance="statistics") if normal else UNKNOWN,
        abnormal_signal_patterns=Field(text=", ".join(abnormal), provenance="statistics") if abnormal else UNKNOWN,
    )


def _side(mask: NDArray[np.bool_], body: NDArray[np.bool_], affine: NDArray[np.float64]) -> str:
    """Left or right of the middle of the labelled body, by its RAS+ x (negative x = left)."""

    def centre_x(where: NDArray[np.bool_]) -> float:
        index = np.argwhere(where).mean(axis=0)
        return float(affine[0, :3] @ index)

    return "right" if centre_x(mask) > centre_x(body) else "left"


def _measured(labels: NDArray[np.uint8], values: list[int], name: str, affine: NDArray[np.float64]) -> str:
    """Number, side and size of the lesions of a labelled volume: ``one lesion, left, 14 mm``."""
    mask = np.isin(labels, values)
    regions, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    largest = regions == 1 + int(np.argmax(np.bincount(regions.ravel())[1:]))
    volume_mm3 = float(largest.sum()) * abs(float(np.linalg.det(affine[:3, :3])))
    diameter = 2 * (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    number = _COUNTS[count] if count < len(_COUNTS) else str(count)
    plural = f"{number} {name}s, largest" if count > 1 else f"{number} {name},"
    return f"{plural} {_side(largest, labels > 0, affine)}, {diameter:.0f} mm"


def _pathology(
    labels: NDArray[np.uint8] | None, label_map: dict[int, str], affine: NDArray[np.float64], facts: SliceFacts, lesion: bool | None
) -> PathologicalFindings:
    if lesion is None:
        return PathologicalFindings()
    if not lesion:
        return PathologicalFindings(masses_or_suspicious_lesions=Field(text=f"no {facts.lesion}", provenance="label"))
    masses = [value for value in lesion_values(label_map) if not is_fluid(label_map[value])]
    fluids = [value for value in lesion_values(label_map) if is_fluid(label_map[value])]

    def found(values: list[int], name: str) -> Field:
        if labels is None or not np.isin(labels, values).any():
            return UNKNOWN
        return Field(text=_measured(labels, values, name, affine), provenance="label")

    mass = found(masses, facts.lesion)
    if labels is None or not np.isin(labels, masses + fluids).any():
        names = sorted(
            {box.label for boxes in facts.boxes.values() for box in boxes} or {f.name for f in facts.findings if f.present}
        )
        mass = Field(text=", ".join(names), provenance="label") if names else UNKNOWN
    return PathologicalFindings(
        signal_abnormalities_or_fluid_collections=found(fluids, label_map[fluids[0]].lower()) if fluids else UNKNOWN,
        masses_or_suspicious_lesions=mass,
    )


def _impression(facts: SliceFacts, lesion: bool | None) -> DiagnosticImpression:
    findings = [finding.name if finding.present else f"no {finding.name}" for finding in facts.findings]
    if not findings and lesion is not None:
        findings = [facts.lesion if lesion else f"no {facts.lesion}"]
    return DiagnosticImpression(suggestive_of=Field(text=", ".join(findings), provenance="label") if findings else UNKNOWN)


def describe(
    volume_id: str,
    acquisition: Acquisition,
    card_anatomy: str | None,
    voxels: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    label_map: dict[int, str],
    affine: NDArray[np.float64],
    facts: SliceFacts,
    lesion: bool | None,
) -> DescriptionRecord:
    """The template of one curated volume ((D, H, W) arrays as stored, affine index -> RAS+ mm)."""
    values = structure_values(label_map) if labels is not None else []
    present = [label_map[value].lower() for value in values if np.any(labels == value)]
    description = Description(
        image_modality_sequence=_acquired(acquisition),
        visible_anatomical_structures=_visible(present, acquisition.anatomy, card_anatomy),
        tissue_signal_characteristics=_tissue(voxels, labels, label_map),
        pathological_findings=_pathology(labels, label_map, affine, facts, lesion),
        diagnostic_impression=_impression(facts, lesion),
    )
    fields = description.fields()
    return DescriptionRecord(
        volume_id=volume_id,
        fields={name: field.text for name, field in fields.items()},
        provenance={name: field.provenance for name, field in fields.items()},
        text=description.paragraph(),
    )
