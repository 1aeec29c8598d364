"""From a radiologist's report to fields of the template: sections by their headings, sentences by their words. No model, no guess.

A sentence goes to the first field whose words it has; a sentence that no rule knows is left out, and so is every sentence that
could name somebody. What is kept is the sentence as it stands, so a negation stays a negation.
"""

from __future__ import annotations

import re

from components.curation.vocabulary import severity
from components.identifying import identifies

_HEADINGS = {
    "technique": ("technique", "protocol", "sequences", "procedure"),
    "findings": ("findings", "observations", "description", "report"),
    "impression": ("impression", "conclusion", "diagnosis", "assessment", "summary", "opinion"),
    "recommendation": ("recommendation", "recommendations", "plan", "advice"),
    "other": (
        "clinical information", "clinical history", "history", "indication", "comparison", "patient", "name", "date", "exam",
        "reason for exam", "referring physician", "radiologist", "signed", "dictated by", "mrn", "dob", "accession",
    ),
}  # fmt: skip
_SECTION_OF = {word: section for section, words in _HEADINGS.items() for word in words}
_HEADING = re.compile(
    r"(?im)^[ \t]*(?:\*\*|#+ *)?("
    + "|".join(sorted(map(re.escape, _SECTION_OF), key=len, reverse=True))
    + r")(?:\*\*)?[ \t]*(?::|$)"
)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bProf\.)\s+(?=[A-Z0-9(])|\n+")
_NUMBERED = re.compile(r"(?m)^[ \t]*\d+[.)][ \t]+")
_ORGAN_HEADING = re.compile(r"^[A-Z][A-Za-z ]{2,30}: *")

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


def sections(report: str) -> dict[str, str]:
    """Section -> text; a report without headings is all findings. Sections that are not about the image are left out."""
    starts = list(_HEADING.finditer(report))
    found = {} if starts else {"findings": report}  # what stands before the first heading is a letterhead
    for this, following in zip(starts, [*starts[1:], None], strict=False):
        section = _SECTION_OF[this.group(1).lower()]
        text = report[this.end() : following.start() if following else len(report)]
        found[section] = f"{found.get(section, '')}\n{text}"
    return {name: text.strip() for name, text in found.items() if name != "other" and text.strip()}


def _sentences(text: str) -> list[str]:
    parts = (_ORGAN_HEADING.sub("", part.strip(" \t-*•")).strip().rstrip(".") for part in _SENTENCE.split(_NUMBERED.sub("", text)))
    return [" ".join(part.split()) for part in parts if part and not identifies(part)]


def parse_report(report: str) -> dict[str, str]:
    """``"section.field"`` -> text of what a report says; only fields that it answers."""
    parts = sections(report)
    found: dict[str, list[str]] = {}
    for sentence in _sentences(parts.get("findings", "")):
        if name := next((name for name, pattern in _RULES if pattern.search(sentence)), None):
            found.setdefault(name, []).append(sentence)
    impression = _sentences(parts.get("impression", ""))
    advice = _sentences(parts.get("recommendation", "")) + [one for one in impression if _RECOMMENDS.search(one)]
    found["diagnostic_impression.suggestive_of"] = [one for one in impression if not _RECOMMENDS.search(one)]
    found["diagnostic_impression.recommendation"] = advice
    grading = severity(". ".join(impression)) or severity(". ".join(_sentences(parts.get("findings", ""))))
    texts = {name: _joined(sentences) for name, sentences in found.items()}
    return {name: text for name, text in {**texts, "diagnostic_impression.severity_or_grading": grading or ""}.items() if text}


def _joined(sentences: list[str]) -> str:
    """As many whole sentences as fit; one that is too long alone is left out."""
    kept: list[str] = []
    for sentence in dict.fromkeys(sentences):
        if sum(map(len, kept)) + len(sentence) + 2 * len(kept) <= _LONGEST:
            kept.append(sentence)
    return "; ".join(kept)
