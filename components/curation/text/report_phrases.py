"""From a radiologist's report to fields of the template: sections by their headings, sentences by their words. No model, no guess.

A sentence goes to the first field whose words it has; a sentence that no rule knows is left out, and so is every sentence that
could name somebody. What is kept is the sentence as it stands, so a negation stays a negation.
"""

from __future__ import annotations

import re

from components.curation.text.controlled_vocabulary import severity
from components.ingestion.annotations.report_tables import sections, sentences

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
_LONGEST = 240


def parse_report(report: str) -> dict[str, str]:
    """``"section.field"`` -> text of what a report says; only fields that it answers."""
    parts = sections(report)
    found: dict[str, list[str]] = {}
    for sentence in sentences(parts.get("findings", "")):
        if name := next((name for name, pattern in _RULES if pattern.search(sentence)), None):
            found.setdefault(name, []).append(sentence)
    impression = sentences(parts.get("impression", ""))
    advice = sentences(parts.get("recommendation", "")) + [one for one in impression if _RECOMMENDS.search(one)]
    found["diagnostic_impression.suggestive_of"] = [one for one in impression if not _RECOMMENDS.search(one)]
    found["diagnostic_impression.recommendation"] = advice
    grading = severity(". ".join(impression)) or severity(". ".join(sentences(parts.get("findings", ""))))
    texts = {name: _joined(kept) for name, kept in found.items()}
    return {name: text for name, text in {**texts, "diagnostic_impression.severity_or_grading": grading or ""}.items() if text}


def _joined(found: list[str]) -> str:
    """As many whole sentences as fit; one that is too long alone is left out."""
    kept: list[str] = []
    for sentence in dict.fromkeys(found):
        if sum(map(len, kept)) + len(sentence) + 2 * len(kept) <= _LONGEST:
            kept.append(sentence)
    return "; ".join(kept)
