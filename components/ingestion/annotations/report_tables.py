"""Radiology reports in tables: keep the sentences about the image; drop the letterhead and sentences that may identify a person.

Rules cannot anonymize free text with certainty, so the result is minimal: of a report with headings only the sections about the
image, without sentences that contain a date, a long number, a title with a name, or a word that the table lists as name,
identifier or physician. Curation then uses only sentences that match one of its rules
(:mod:`components.curation.text.report_phrases`).
"""

from __future__ import annotations

import re
from pathlib import Path

from components.catalog.layout import LabelTable
from components.ingestion.annotations.tables import column_index, find_rows
from components.phi_patterns import contains_phi

_HEADINGS = {
    "technique": ("technique", "protocol", "sequences", "procedure"),
    "findings": ("findings", "observations", "description", "report"),
    "impression": ("impression", "conclusion", "diagnosis", "assessment", "summary", "opinion"),
    "recommendation": ("recommendation", "recommendations", "plan", "advice"),
    "other": (
        "clinical information",
        "clinical history",
        "history",
        "indication",
        "comparison",
        "patient",
        "name",
        "date",
        "exam",
        "reason for exam",
        "referring physician",
        "radiologist",
        "signed",
        "dictated by",
        "mrn",
        "dob",
        "accession",
    ),
}
_SECTION_OF = {word: section for section, words in _HEADINGS.items() for word in words}
_HEADING = re.compile(
    r"(?im)^[ \t]*(?:\*\*|#+ *)?("
    + "|".join(sorted(map(re.escape, _SECTION_OF), key=len, reverse=True))
    + r")(?:\*\*)?[ \t]*(?::|$)"
)
_SENTENCE = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bMrs\.)(?<!\bProf\.)\s+(?=[A-Z0-9(])|\n+")
_NUMBERED = re.compile(r"(?m)^[ \t]*\d+[.)][ \t]+")
_ORGAN_HEADING = re.compile(r"^[A-Z][A-Za-z ]{2,30}: *")
_IMAGE_SECTIONS = ("findings", "impression", "recommendation")
_PERSON_COLUMN = re.compile(
    r"(?i)name|patient|physician|doctor|radiolog|reader|signed|birth|address|phone|mrn|accession|\bid\b|_id$|uid$"
)
"""Titles of columns whose cells may name a person."""


def split_sections(report: str) -> dict[str, str]:
    """Return section -> text, without sections that are not about the image; a report without headings is all findings."""
    headings = list(_HEADING.finditer(report))
    texts = {} if headings else {"findings": report}  # text before the first heading is the letterhead
    for heading, next_heading in zip(headings, [*headings[1:], None], strict=False):
        section = _SECTION_OF[heading.group(1).lower()]
        text = report[heading.end() : next_heading.start() if next_heading else len(report)]
        texts[section] = f"{texts.get(section, '')}\n{text}"
    return {name: text.strip() for name, text in texts.items() if name != "other" and text.strip()}


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a section without organ headings and final periods; drop those that may identify a person."""
    lines = (line.strip(" \t-*•") for line in _SENTENCE.split(_NUMBERED.sub("", text)))
    sentences = (_ORGAN_HEADING.sub("", line).strip().rstrip(".") for line in lines)
    return [" ".join(sentence.split()) for sentence in sentences if sentence and not contains_phi(sentence)]


def read_report(table: Path, layout: LabelTable, key: str) -> str:
    """Return the cleaned report of a table about an image: a heading per section, one sentence per line; "" without a report.

    Raises:
        BadInput: the table lacks a column of the card.
    """
    assert layout.report is not None
    titles, rows = find_rows(table, layout, key)
    column = column_index(layout.report, titles, table)
    texts = []
    for row in rows:
        person_cells = [cell for title, cell in zip(titles, row, strict=False) if _PERSON_COLUMN.search(title)]
        names = {word.lower() for cell in (key, *person_cells) for word in _split_words(cell) if len(word) > 1}
        if len(row) > column:
            texts.append(_clean_report(row[column], names))
    return "\n".join(text for text in texts if text)


def _clean_report(report: str, names: set[str]) -> str:
    """Return the sections about the image, without sentences that contain one of the names (lower case)."""
    texts = split_sections(report)
    lines: list[str] = []
    for section in _IMAGE_SECTIONS:
        sentences = [text for text in split_sentences(texts.get(section, "")) if not names & set(_split_words(text.lower()))]
        lines += [f"{section.upper()}:", *(f"{sentence}." for sentence in sentences)] if sentences else []
    return "\n".join(lines)


def _split_words(text: str) -> list[str]:
    return re.split(r"[\W_]+", text)
