"""Radiologists' reports beside images: the sentences about the image, without letterhead and without any that could name somebody.

Free text cannot be made anonymous by rules with certainty. So as little as possible is taken over: of a report with headings only
the sections about the image, and of these no sentence with a date, a long number, a title and a name, or a word that the table
gives as a name, an identifier or a physician. Of that, curation uses only sentences that one of its rules knows
(``curation/text/report_phrases.py``).
"""

from __future__ import annotations

import re
from pathlib import Path

from components.catalog.cards import LabelTable
from components.ingestion.annotations.finding_tables import matching_rows, place_of
from components.phi_patterns import identifies

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
_TAKEN = ("findings", "impression", "recommendation")
_NAMING_TITLE = re.compile(
    r"(?i)name|patient|physician|doctor|radiolog|reader|signed|birth|address|phone|mrn|accession|\bid\b|_id$|uid$"
)
"""Titles of columns whose cells may name somebody."""


def sections(report: str) -> dict[str, str]:
    """Section -> text; a report without headings is all findings. Sections that are not about the image are left out."""
    starts = list(_HEADING.finditer(report))
    found = {} if starts else {"findings": report}  # what stands before the first heading is a letterhead
    for this, following in zip(starts, [*starts[1:], None], strict=False):
        section = _SECTION_OF[this.group(1).lower()]
        text = report[this.end() : following.start() if following else len(report)]
        found[section] = f"{found.get(section, '')}\n{text}"
    return {name: text.strip() for name, text in found.items() if name != "other" and text.strip()}


def sentences(text: str) -> list[str]:
    """The sentences of a section, without organ headings and full stops; those that could name somebody are left out."""
    parts = (_ORGAN_HEADING.sub("", part.strip(" \t-*•")).strip().rstrip(".") for part in _SENTENCE.split(_NUMBERED.sub("", text)))
    return [" ".join(part.split()) for part in parts if part and not identifies(part)]


def report_of(table: Path, layout: LabelTable, key: str) -> str:
    """The report that a table has about an image, cleaned: a heading for each section, a sentence a line; "" for none.

    Raises:
        BadInput: a column of the card is not in the table.
    """
    assert layout.report is not None
    titles, found = matching_rows(table, layout, key)
    column = place_of(layout.report, titles, table)
    texts = []
    for row in found:
        naming = [cell for title, cell in zip(titles, row, strict=False) if _NAMING_TITLE.search(title)]
        names = {word.lower() for cell in (key, *naming) for word in re.split(r"[\W_]+", cell) if len(word) > 1}
        if len(row) > column:
            texts.append(_cleaned(row[column], names))
    return "\n".join(text for text in texts if text)


def _cleaned(report: str, names: set[str]) -> str:
    parts = sections(report)
    lines: list[str] = []
    for section in _TAKEN:
        kept = [one for one in sentences(parts.get(section, "")) if not names & set(re.split(r"[\W_]+", one.lower()))]
        lines += [f"{section.upper()}:", *(f"{sentence}." for sentence in kept)] if kept else []
    return "\n".join(lines)
