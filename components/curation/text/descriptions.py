"""Filling the template from facts alone, no voxel read: section 1 from the header, 2 to 5 from report, labels, boxes and diagnoses.

Nothing is guessed. Where no source answers, the field stays empty with provenance ``none``. Trust goes header, report, label,
statistics, vision-language model, card: the first that answers a field keeps it. The model (``curation/vlm``) answers later, of
all volumes together, and only in sections 2 and 3 (:func:`add_vlm_answers`).
"""

from __future__ import annotations

from components.curation.measure.volume_facts import SliceFacts
from components.curation.table_rows import DescriptionRecord, MeasureRecord
from components.curation.text.phrasings import describe_in_words
from components.curation.text.report_phrases import parse_report
from components.curation.text.structure_names import is_fluid, template_field
from components.curation.text.template import Draft, HierarchicalDescription, Provenance, paragraph
from components.ingestion.sequence_classification import canonical_sequence
from components.ingestion.volume import Acquisition

BRIGHTER, DARKER = 1.1, 0.9
"""Signal ratios beyond which a lesion is called hyper- or hypointense to the reference tissue."""
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_COUNTABLE = ("lesion", "tumor", "tumour", "cyst", "tear", "infarct", "metastasis", "nodule", "scar", "core")
_ACQUIRED, _VISIBLE, _TISSUE = "image_modality_sequence", "visible_anatomical_structures", "tissue_signal_characteristics"
_PATHOLOGY, _IMPRESSION = "pathological_findings", "diagnostic_impression"
VISUAL_SECTIONS = (_VISIBLE, _TISSUE)
"""What a vision-language model may fill."""


def _acquired(draft: Draft, acquisition: Acquisition) -> None:
    draft.put(f"{_ACQUIRED}.modality", "MRI" if acquisition.modality == "MR" else None, "header")
    draft.put(f"{_ACQUIRED}.sequence", canonical_sequence(acquisition.sequence), "header")
    draft.put(f"{_ACQUIRED}.plane", acquisition.plane, "header")


def _visible(draft: Draft, measures: list[MeasureRecord], anatomy: str | None, card_anatomy: str | None) -> None:
    """Labelled structures by field; without labels, the body part that the header (or else the card) names."""
    by_field: dict[str, list[str]] = {}
    for one in measures:
        if not one.lesion:
            by_field.setdefault(template_field(one.name), []).append(one.name)
    for field, names in by_field.items():
        draft.put(f"{_VISIBLE}.{field}", ", ".join(names), "label")
    if not by_field and (anatomy or card_anatomy):
        named = anatomy or card_anatomy or ""
        draft.put(f"{_VISIBLE}.{template_field(named)}", named, "header" if anatomy else "card")


def level(signal: float) -> str:
    """What a relative signal is called."""
    return "hyperintense" if signal > BRIGHTER else "hypointense" if signal < DARKER else "isointense"


def _tissue(draft: Draft, measures: list[MeasureRecord]) -> None:
    normal = [f"{m.name} {m.signal:.1f} of {m.reference}" for m in measures if m.signal is not None and not m.lesion]
    abnormal = [f"{m.name} {level(m.signal)} to {m.reference}" for m in measures if m.signal is not None and m.lesion]
    draft.put(f"{_TISSUE}.normal_signal_appearance", ", ".join(normal), "statistics")
    draft.put(f"{_TISSUE}.abnormal_signal_patterns", ", ".join(abnormal), "statistics")


def measured(one: MeasureRecord) -> str:
    """Number, side, surroundings and size of a lesion: ``one lesion, left, in white matter, 14 mm, 1.4 ml``."""
    count = one.count or 1
    number = _COUNTS[count] if count < len(_COUNTS) else str(count)
    parts: tuple[str | None, ...]
    size, volume = f"{one.size_mm:.0f} mm", f"{one.volume_ml:.1f} ml" if one.volume_ml is not None else None
    if count == 1:
        parts = (f"{number} {one.name}", one.side, one.inside and f"in {one.inside}", size, volume)
    else:
        name = f"{one.name}s" if one.name.endswith(_COUNTABLE) else f"areas of {one.name}"
        largest = f"largest in {one.inside}" if one.inside else "largest"
        parts = (f"{number} {name}", one.side, f"{largest}, {size}", volume and f"together {volume}")
    return ", ".join(part for part in parts if part)


def _pathology(draft: Draft, facts: SliceFacts, lesion: bool | None) -> None:
    if lesion is None:
        return
    masses = f"{_PATHOLOGY}.masses_or_suspicious_lesions"
    if not lesion:
        draft.put(masses, f"no {facts.lesion}", "label")
        return
    lesions = [one for one in facts.measures if one.lesion]
    fluids = "; ".join(measured(one) for one in lesions if is_fluid(one.name))
    draft.put(f"{_PATHOLOGY}.signal_abnormalities_or_fluid_collections", fluids, "label")
    draft.put(masses, "; ".join(measured(one) for one in lesions if not is_fluid(one.name)), "label")
    if not lesions:
        draft.put(masses, ", ".join(sorted({f.name for f in facts.findings if f.present})), "label")


def _impression(draft: Draft, facts: SliceFacts, lesion: bool | None) -> None:
    findings = [finding.name if finding.present else f"no {finding.name}" for finding in facts.findings]
    if not findings and lesion is not None:
        findings = [facts.lesion if lesion else f"no {facts.lesion}"]
    draft.put(f"{_IMPRESSION}.suggestive_of", ", ".join(findings), "label")


def _record(volume_id: str, draft: Draft, measures: list[MeasureRecord], vlm: str | None) -> DescriptionRecord:
    """The row of a draft; the model of the template checks names and vocabularies."""
    fields = HierarchicalDescription.of(draft.texts).fields()
    return DescriptionRecord(
        volume_id=volume_id,
        fields=fields,
        provenance=dict(draft.provenance),
        text=paragraph(fields),
        phrasings=describe_in_words(fields),
        measures=measures,
        vlm=vlm,
    )


def describe(
    volume_id: str, acquisition: Acquisition, card_anatomy: str | None, report: str, facts: SliceFacts, lesion: bool | None
) -> DescriptionRecord:
    """The template of one curated volume.

    Args:
        card_anatomy: body part by the dataset card.
        report: the radiologist's text, "" for none.
        lesion: whether a lesion is present; None = unknown.
    """
    draft = Draft()
    _acquired(draft, acquisition)
    for name, text in (parse_report(report) if report else {}).items():
        draft.put(name, text, "report")
    _visible(draft, facts.measures, acquisition.anatomy, card_anatomy)
    _tissue(draft, facts.measures)
    _pathology(draft, facts, lesion)
    _impression(draft, facts, lesion)
    return _record(volume_id, draft, facts.measures, None)


def add_vlm_answers(record: DescriptionRecord, answers: dict[str, str], vlm: str) -> DescriptionRecord:
    """A description with a model's answers (``"section.field"`` -> text) where only the card, or nothing, had one."""
    draft = Draft()
    for name, text in record.fields.items():
        source: Provenance = record.provenance[name]  # type: ignore[assignment]
        answered = bool(answers.get(name)) and name.partition(".")[0] in VISUAL_SECTIONS
        if source == "card" and answered:
            continue
        draft.put(name, text, source)
    for name, text in answers.items():
        if name.partition(".")[0] in VISUAL_SECTIONS:
            draft.put(name, text, "vlm")
    return _record(record.volume_id, draft, record.measures, vlm)
