"""Fill the template from facts, without reading voxels: section 1 from the header, 2 to 5 from report, labels, boxes and diagnoses.

Nothing is guessed: a field without a source stays empty with provenance ``none``. The order of trust is header, report, label,
statistics, vision-language model, card; the first source of a field is kept. The model (``curation/vlm``) is queried later, about
all volumes together, and fills only sections 2 and 3 (:func:`add_vlm_answers`).
"""

from __future__ import annotations

from components.curation.measure.volume_facts import SliceFacts
from components.curation.table_rows import DescriptionRecord, MeasureRecord
from components.curation.text.phrasings import describe_in_words
from components.curation.text.report_phrases import parse_report
from components.curation.text.structure_names import is_diffuse, is_fluid, template_field
from components.curation.text.template import Draft, HierarchicalDescription, Provenance, format_paragraph
from components.ingestion.sequence_classification import canonical_sequence
from components.ingestion.volume import Acquisition

BRIGHTER, DARKER = 1.1, 0.9
"""Signal ratios beyond which a lesion is called hyper- or hypointense to the reference tissue."""
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_COUNTABLE = ("lesion", "tumor", "tumour", "cyst", "tear", "infarct", "metastasis", "nodule", "scar", "core")
_ACQUIRED, _VISIBLE, _TISSUE = "image_modality_sequence", "visible_anatomical_structures", "tissue_signal_characteristics"
_PATHOLOGY, _IMPRESSION = "pathological_findings", "diagnostic_impression"
VISUAL_SECTIONS = (_VISIBLE, _TISSUE)
"""Sections that a vision-language model may fill."""


def _fill_acquisition(draft: Draft, acquisition: Acquisition) -> None:
    draft.fill(f"{_ACQUIRED}.modality", "MRI" if acquisition.modality == "MR" else None, "header")
    draft.fill(f"{_ACQUIRED}.sequence", canonical_sequence(acquisition.sequence), "header")
    draft.fill(f"{_ACQUIRED}.plane", acquisition.plane, "header")


def _fill_structures(draft: Draft, measures: list[MeasureRecord], anatomy: str | None, card_anatomy: str | None) -> None:
    """Fill in the labeled structures; without labels, the body part according to the header, else the card."""
    by_field: dict[str, list[str]] = {}
    for measure in measures:
        if not measure.lesion:
            by_field.setdefault(template_field(measure.name), []).append(measure.name)
    for field, names in by_field.items():
        draft.fill(f"{_VISIBLE}.{field}", ", ".join(names), "label")
    body_part = anatomy or card_anatomy
    if not by_field and body_part:
        draft.fill(f"{_VISIBLE}.{template_field(body_part)}", body_part, "header" if anatomy else "card")


def signal_term(signal: float) -> str:
    """Return the term for a relative signal."""
    return "hyperintense" if signal > BRIGHTER else "hypointense" if signal < DARKER else "isointense"


def _fill_signal(draft: Draft, measures: list[MeasureRecord]) -> None:
    normal = [f"{m.name} {m.signal:.1f} of {m.reference}" for m in measures if m.signal is not None and not m.lesion]
    abnormal = [f"{m.name} {signal_term(m.signal)} to {m.reference}" for m in measures if m.signal is not None and m.lesion]
    draft.fill(f"{_TISSUE}.normal_signal_appearance", ", ".join(normal), "statistics")
    draft.fill(f"{_TISSUE}.abnormal_signal_patterns", ", ".join(abnormal), "statistics")


def describe_lesion(measure: MeasureRecord) -> str:
    """Describe number, side, surroundings and size of a lesion: ``one lesion, left, in white matter, 14 mm, 1.4 ml``."""
    count = measure.count or 1
    number = _COUNTS[count] if count < len(_COUNTS) else str(count)
    size = f"{measure.size_mm:.0f} mm"
    volume = f"{measure.volume_ml:.1f} ml" if measure.volume_ml is not None else None
    parts: tuple[str | None, ...]
    if count == 1:
        parts = (f"{number} {measure.name}", measure.side, measure.inside and f"in {measure.inside}", size, volume)
    else:
        name = f"{measure.name}s" if measure.name.endswith(_COUNTABLE) else f"areas of {measure.name}"
        largest = f"largest in {measure.inside}" if measure.inside else "largest"
        parts = (f"{number} {name}", measure.side, f"{largest}, {size}", volume and f"together {volume}")
    return ", ".join(part for part in parts if part)


def _fill_pathology(draft: Draft, facts: SliceFacts, has_lesion: bool | None) -> None:
    diffuse = [finding.name for finding in facts.findings if finding.present and is_diffuse(finding.name)]
    draft.fill(f"{_PATHOLOGY}.structural_abnormalities", ", ".join(diffuse), "label")
    if has_lesion is None:
        return
    masses = f"{_PATHOLOGY}.masses_or_suspicious_lesions"
    if not has_lesion:
        draft.fill(masses, f"no {facts.lesion}", "label")
        return
    lesions = [measure for measure in facts.measures if measure.lesion]
    fluids = "; ".join(describe_lesion(lesion) for lesion in lesions if is_fluid(lesion.name))
    draft.fill(f"{_PATHOLOGY}.signal_abnormalities_or_fluid_collections", fluids, "label")
    draft.fill(masses, "; ".join(describe_lesion(lesion) for lesion in lesions if not is_fluid(lesion.name)), "label")
    if not lesions:
        present = {finding.name for finding in facts.findings if finding.present and not is_diffuse(finding.name)}
        draft.fill(masses, ", ".join(sorted(present)), "label")


def _fill_impression(draft: Draft, facts: SliceFacts, has_lesion: bool | None) -> None:
    """Fill in the findings, those with a place first: equal facts have one wording, whatever source states them."""
    ordered = sorted(facts.findings, key=lambda finding: is_diffuse(finding.name))
    findings = [finding.name if finding.present else f"no {finding.name}" for finding in ordered]
    if all(is_diffuse(finding.name) for finding in facts.findings) and has_lesion is not None:
        kinds = sorted({box.label.lower() for boxes in facts.boxes.values() for box in boxes})
        findings = [*((kinds or [facts.lesion]) if has_lesion else [f"no {facts.lesion}"]), *findings]
    draft.fill(f"{_IMPRESSION}.suggestive_of", ", ".join(findings), "label")


def _to_record(volume_id: str, draft: Draft, measures: list[MeasureRecord], vlm: str | None) -> DescriptionRecord:
    """Convert a draft to a table row; the template validates names and vocabularies."""
    fields = HierarchicalDescription.from_fields(draft.texts).fields()
    return DescriptionRecord(
        volume_id=volume_id,
        fields=fields,
        provenance=dict(draft.provenance),
        text=format_paragraph(fields),
        phrasings=describe_in_words(fields),
        measures=measures,
        vlm=vlm,
    )


def describe(
    volume_id: str, acquisition: Acquisition, card_anatomy: str | None, report: str, facts: SliceFacts, lesion: bool | None
) -> DescriptionRecord:
    """Fill the template of one curated volume: structures by name, so that equal facts have one wording.

    Args:
        volume_id: of the volume.
        acquisition: header fields of the source.
        card_anatomy: body part according to the dataset card.
        report: the radiologist's text, "" for none.
        facts: of the volume.
        lesion: a lesion is present; None = unknown.
    """
    facts = facts.model_copy(update={"measures": sorted(facts.measures, key=lambda measure: measure.name)})
    draft = Draft()
    _fill_acquisition(draft, acquisition)
    for name, text in (parse_report(report) if report else {}).items():
        draft.fill(name, text, "report")
    _fill_structures(draft, facts.measures, acquisition.anatomy, card_anatomy)
    _fill_signal(draft, facts.measures)
    _fill_pathology(draft, facts, lesion)
    _fill_impression(draft, facts, lesion)
    return _to_record(volume_id, draft, facts.measures, None)


def add_vlm_answers(record: DescriptionRecord, answers: dict[str, str], vlm: str) -> DescriptionRecord:
    """Return a description with the answers of a model in the fields that are empty or come from the card.

    Args:
        record: the description.
        answers: ``"section.field"`` -> text.
        vlm: identifies model and prompt.
    """
    draft = Draft()
    usable = {name: text for name, text in answers.items() if name.partition(".")[0] in VISUAL_SECTIONS}
    for name, text in record.fields.items():
        source: Provenance = record.provenance[name]  # type: ignore[assignment]
        if source == "card" and usable.get(name):
            continue
        draft.fill(name, text, source)
    for name, text in usable.items():
        draft.fill(name, text, "vlm")
    return _to_record(record.volume_id, draft, record.measures, vlm)
