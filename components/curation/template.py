"""The hierarchical description template of the paper's Fig. 2: five sections, 19 fields, the figure's exact names.

Every field carries where its text comes from; an empty field is one that neither header, label, statistics nor card answers.
The paragraph form ("Modality: MRI. Sequence: T1-weighted. ...") is what the network reads and writes; :func:`parse_paragraph`
is its inverse, for metrics over fields.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

Provenance = Literal["header", "label", "statistics", "card", "none"]
PROVENANCES: tuple[Provenance, ...] = ("header", "label", "statistics", "card", "none")


class Field(BaseModel):
    """One answer and its source."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str = ""
    provenance: Provenance = "none"


UNKNOWN = Field()


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageModalitySequence(_Section):
    """Level 1: what was acquired, and how."""

    modality: Field = UNKNOWN
    sequence: Field = UNKNOWN
    plane: Field = UNKNOWN
    acquisition_quality_or_artifacts: Field = UNKNOWN


class VisibleAnatomicalStructures(_Section):
    """Level 2: what is seen."""

    bony_structures: Field = UNKNOWN
    articular_structures: Field = UNKNOWN
    soft_tissues_and_musculature: Field = UNKNOWN
    organs_or_central_structures: Field = UNKNOWN
    neurovascular_or_connective_structures: Field = UNKNOWN
    spaces_or_cavities_or_joint_compartments: Field = UNKNOWN


class TissueSignalCharacteristics(_Section):
    """Level 3: how it looks."""

    normal_signal_appearance: Field = UNKNOWN
    abnormal_signal_patterns: Field = UNKNOWN
    symmetry_and_structural_integrity: Field = UNKNOWN


class PathologicalFindings(_Section):
    """Level 4: what is wrong."""

    structural_abnormalities: Field = UNKNOWN
    signal_abnormalities_or_fluid_collections: Field = UNKNOWN
    masses_or_suspicious_lesions: Field = UNKNOWN


class DiagnosticImpression(_Section):
    """Level 5: what it means."""

    suggestive_of: Field = UNKNOWN
    severity_or_grading: Field = UNKNOWN
    recommendation: Field = UNKNOWN


class Description(_Section):
    """The whole template."""

    image_modality_sequence: ImageModalitySequence = ImageModalitySequence()
    visible_anatomical_structures: VisibleAnatomicalStructures = VisibleAnatomicalStructures()
    tissue_signal_characteristics: TissueSignalCharacteristics = TissueSignalCharacteristics()
    pathological_findings: PathologicalFindings = PathologicalFindings()
    diagnostic_impression: DiagnosticImpression = DiagnosticImpression()

    def fields(self) -> dict[str, Field]:
        """``"section.field"`` -> field, in the order of Fig. 2."""
        return {
            f"{section}.{name}": getattr(getattr(self, section), name)
            for section in type(self).model_fields
            for name in type(getattr(self, section)).model_fields
        }

    def paragraph(self) -> str:
        """The known fields as one paragraph."""
        return " ".join(f"{_label(name)}: {field.text}." for name, field in self.fields().items() if field.text)


FIELD_NAMES: tuple[str, ...] = tuple(Description().fields())
"""``"section.field"``, all 19, in the order of Fig. 2."""


def _label(name: str) -> str:
    return name.partition(".")[2].replace("_", " ").capitalize()


_LABELS = {_label(name): name for name in FIELD_NAMES}
_START = re.compile("(?:^|(?<=[. ]))(" + "|".join(re.escape(label) for label in _LABELS) + "): ")


def parse_paragraph(text: str) -> dict[str, str]:
    """``"section.field"`` -> text of every field found in a paragraph; the first wins where one is repeated."""
    starts = list(_START.finditer(text))
    found: dict[str, str] = {}
    for this, following in zip(starts, [*starts[1:], None], strict=False):
        value = text[this.end() : following.start() if following else len(text)].strip().removesuffix(".")
        found.setdefault(_LABELS[this.group(1)], value)
    return found
