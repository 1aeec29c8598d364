"""Assign the sentences of a radiologist's report to fields of the template: sections by headings, sentences by words, no model.

A sentence is assigned to the first field whose words it contains; a sentence without a matching rule is skipped, and so is every
sentence that could identify a person. Sentences are copied verbatim, so that a negation stays a negation.
"""

from __future__ import annotations

import re

from components.curation.text.controlled_vocabulary import parse_severity
from components.ingestion.annotations.report_tables import split_sections, split_sentences

_FINDING_WORDS: tuple[tuple[str, str], ...] = (
    ("image_modality_sequence.acquisition_quality_or_artifacts", r"artifact|artefact|motion degraded|image quality|nondiagnostic"),
    (
        "pathological_findings.masses_or_suspicious_lesions",
        r"\b(?:mass|lesion|nodule|tumou?r|metasta\w*|neoplasm|glioma)(?:e?s)?\b",
    ),
    (
        "pathological_findings.signal_abnormalities_or_fluid_collections",
        r"\b(?:effusion|o?edema|ha?emorrhage|fluid|cyst|collection|infarct\w*|hyp(?:er|o)intens\w+|restricted diffusion)s?\b",
    ),
    (
        "pathological_findings.structural_abnormalities",
        r"\b(?:tear|torn|rupture|fracture|herniat\w+|protrusion|thinning|defect|stenosis|atrophy|degenerat\w+|sprain|narrowing)s?\b",
    ),
    (
        "tissue_signal_characteristics.symmetry_and_structural_integrity",
        r"midline shift|symmetr|mass effect|displace|aligned|alignment",
    ),
    (
        "tissue_signal_characteristics.normal_signal_appearance",
        r"(?:normal|preserved|unremarkable).*signal|signal.*(?:normal|preserved)|differentiation",
    ),
)
_RULES = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _FINDING_WORDS)
_RECOMMENDS = re.compile(
    r"\b(?:recommend\w*|advise\w*|follow[- ]?up|suggest(?:ed)? (?:biopsy|correlation)|biopsy|correlat\w+)\b", re.I
)
_MAX_CHARACTERS = 240


def parse_report(report: str) -> dict[str, str]:
    """Return ``"section.field"`` -> text of the fields that a report answers."""
    parts = split_sections(report)
    sentences_by_field: dict[str, list[str]] = {}
    for sentence in split_sentences(parts.get("findings", "")):
        if name := next((name for name, pattern in _RULES if pattern.search(sentence)), None):
            sentences_by_field.setdefault(name, []).append(sentence)
    impression = split_sentences(parts.get("impression", ""))
    advice = split_sentences(parts.get("recommendation", "")) + [
        sentence for sentence in impression if _RECOMMENDS.search(sentence)
    ]
    sentences_by_field["diagnostic_impression.suggestive_of"] = [
        sentence for sentence in impression if not _RECOMMENDS.search(sentence)
    ]
    sentences_by_field["diagnostic_impression.recommendation"] = advice
    grading = parse_severity(". ".join(impression)) or parse_severity(". ".join(split_sentences(parts.get("findings", ""))))
    texts = {name: _join_sentences(candidates) for name, candidates in sentences_by_field.items()}
    texts["diagnostic_impression.severity_or_grading"] = grading or ""
    return {name: text for name, text in texts.items() if text}


def _join_sentences(candidates: list[str]) -> str:
    """Join as many whole sentences as fit; skip a sentence that is too long by itself."""
    joined: list[str] = []
    for sentence in dict.fromkeys(candidates):
        if sum(map(len, joined)) + len(sentence) + 2 * len(joined) <= _MAX_CHARACTERS:
            joined.append(sentence)
    return "; ".join(joined)
