"""The hierarchical description template of the paper's Fig. 2: five sections, 19 fields, the figure's exact names.

:class:`HierarchicalDescription` in JSON has exactly the form of the figure: names and plain texts, ``""`` if unknown. The source of
each text is recorded separately (:class:`Draft`). The network reads and writes the paragraph form ("Modality: MRI. Sequence:
T1-weighted. ..."); :func:`parse_paragraph` is its inverse, for metrics over fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.curation.text.controlled_vocabulary import MODALITIES, PLANES, severity_pattern
from components.ingestion.sequence_classification import SEQUENCES

Provenance = Literal["header", "label", "report", "statistics", "vlm", "card", "none"]
PROVENANCES: tuple[Provenance, ...] = ("header", "label", "report", "statistics", "vlm", "card", "none")


def _one_of(words: tuple[str, ...]) -> Any:
    """Return a field that accepts a text of a controlled vocabulary or an empty text."""
    return Field(
        default="", pattern="^(|" + "|".join(re.escape(word) for word in words) + ")$", json_schema_extra={"enum": ["", *words]}
    )


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageModalitySequence(_Section):
    """Level 1: the acquisition."""

    modality: str = _one_of(MODALITIES)
    sequence: str = _one_of(SEQUENCES)
    plane: str = _one_of(PLANES)
    acquisition_quality_or_artifacts: str = ""


class VisibleAnatomicalStructures(_Section):
    """Level 2: the visible structures."""

    bony_structures: str = ""
    articular_structures: str = ""
    soft_tissues_and_musculature: str = ""
    organs_or_central_structures: str = ""
    neurovascular_or_connective_structures: str = ""
    spaces_or_cavities_or_joint_compartments: str = ""


class TissueSignalCharacteristics(_Section):
    """Level 3: the appearance of the tissues."""

    normal_signal_appearance: str = ""
    abnormal_signal_patterns: str = ""
    symmetry_and_structural_integrity: str = ""


class PathologicalFindings(_Section):
    """Level 4: the abnormalities."""

    structural_abnormalities: str = ""
    signal_abnormalities_or_fluid_collections: str = ""
    masses_or_suspicious_lesions: str = ""


class DiagnosticImpression(_Section):
    """Level 5: the interpretation."""

    suggestive_of: str = ""
    severity_or_grading: Annotated[str, Field(pattern=severity_pattern())] = ""
    recommendation: str = ""


class HierarchicalDescription(_Section):
    """The whole template; ``model_json_schema()`` is its JSON schema."""

    image_modality_sequence: ImageModalitySequence = ImageModalitySequence()
    visible_anatomical_structures: VisibleAnatomicalStructures = VisibleAnatomicalStructures()
    tissue_signal_characteristics: TissueSignalCharacteristics = TissueSignalCharacteristics()
    pathological_findings: PathologicalFindings = PathologicalFindings()
    diagnostic_impression: DiagnosticImpression = DiagnosticImpression()

    @classmethod
    def from_fields(cls, fields: dict[str, str]) -> HierarchicalDescription:
        """Build the description from ``"section.field"`` -> text.

        Raises:
            pydantic.ValidationError: a field name is not in Fig. 2, or a word is not in its vocabulary.
        """
        sections: dict[str, dict[str, str]] = {}
        for name, text in fields.items():
            section, _, leaf = name.partition(".")
            sections.setdefault(section, {})[leaf] = text
        return cls.model_validate(sections)

    def fields(self) -> dict[str, str]:
        """Return ``"section.field"`` -> text, in the order of Fig. 2."""
        return {
            f"{section}.{name}": getattr(getattr(self, section), name)
            for section in type(self).model_fields
            for name in type(getattr(self, section)).model_fields
        }


FIELD_NAMES: tuple[str, ...] = tuple(HierarchicalDescription().fields())
"""``"section.field"``, all 19, in the order of Fig. 2."""


@dataclass
class Draft:
    """A description under construction: the first source of a field is kept, so that the most trusted source must come first."""

    texts: dict[str, str] = field(default_factory=lambda: dict.fromkeys(FIELD_NAMES, ""))
    provenance: dict[str, Provenance] = field(default_factory=lambda: dict.fromkeys(FIELD_NAMES, "none"))

    def fill(self, name: str, text: str | None, provenance: Provenance) -> None:
        """Fill one ``"section.field"`` unless it is filled already or the text is empty."""
        if text and not self.texts[name]:
            self.texts[name], self.provenance[name] = text, provenance


def format_paragraph(fields: dict[str, str]) -> str:
    """Format ``"section.field"`` -> text as one paragraph, in the order of Fig. 2; empty fields are omitted."""
    return " ".join(f"{_label(name)}: {fields[name]}." for name in FIELD_NAMES if fields.get(name))


def _format_header(fields: dict[str, str]) -> str:
    """Format facts of the header: those of the template, and the field strength."""
    strength = f"{_label(FIELD_STRENGTH)}: {fields[FIELD_STRENGTH]}." if fields.get(FIELD_STRENGTH) else ""
    return " ".join(part for part in (format_paragraph(fields), strength) if part)


def _label(name: str) -> str:
    return name.partition(".")[2].replace("_", " ").capitalize()


KNEE_ORGANS: tuple[str, ...] = ("joint_space", "menisci", "cartilage", "bone", "soft_tissues")
"""The order of the paper's knee reports (section 5); impression and recommendation follow."""
FIELD_STRENGTH = "acquisition.field_strength"
"""A fact of the header that reports state after section 1, although the template has no field for it."""
_LABELS = {_label(name): name for name in FIELD_NAMES} | {_label(f"knee.{organ}"): f"knee.{organ}" for organ in KNEE_ORGANS}
_LABELS |= {_label(FIELD_STRENGTH): FIELD_STRENGTH}
_START = re.compile("(?:^|(?<=[. ]))(" + "|".join(re.escape(label) for label in _LABELS) + "): ")


def parse_paragraph(text: str) -> dict[str, str]:
    """Parse a paragraph or report into ``"section.field"`` -> text; the first occurrence of a repeated field is used.

    The organs of knee reports are returned as ``knee.<organ>``.
    """
    starts = list(_START.finditer(text))
    fields: dict[str, str] = {}
    for this, following in zip(starts, [*starts[1:], None], strict=False):
        value = text[this.end() : following.start() if following else len(text)].strip().removesuffix(".")
        fields.setdefault(_LABELS[this.group(1)], value)
    return fields


def with_fields(text: str, fields: dict[str, str]) -> str:
    """Return a paragraph or report with the given facts of the header in place of its own, before everything else.

    A field of section 1 is one sentence: whatever follows it is kept, also under names that the template does not have.

    Args:
        text: paragraph or report.
        fields: ``"section.field"`` -> text.
    """
    names = "|".join(re.escape(_label(name)) for name in fields)
    rest = re.sub(rf"(?:^|(?<=[. ]))(?:{names}): [^.]*(?:\.(?! )[^.]+)*\.? ?", "", text).strip() if fields else text
    return " ".join(part for part in (_format_header(fields), rest) if part)
