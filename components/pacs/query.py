"""Queries of the form ``Modality=MR&BodyPartExamined=BRAIN``: matching keys by keyword or tag, as in QIDO-RS (PS3.18 8.3.4)."""

from __future__ import annotations

import difflib
import re
from datetime import date, timedelta
from urllib.parse import parse_qsl

from components.errors import BadInput

RESERVED = ("limit", "offset", "fuzzymatching", "includefield")
_EXAMPLE = "e.g. Modality=MR&BodyPartExamined=BRAIN&StudyDate=20260101-"


def parse_query(query: str, recent_days: int | None = None) -> dict[str, str]:
    """Return keyword -> value of a query. Values are not quoted in errors: they may be a patient's.

    Args:
        query: ``key=value`` pairs joined by ``&``.
        recent_days: only studies since so many days ago; contradicts a Study Date in the query.

    Raises:
        BadInput: no pairs, an unknown key, a key twice, or an empty value.
    """
    from pydicom.datadict import keyword_dict, keyword_for_tag, tag_for_keyword

    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, errors="strict") if query else []
    except ValueError:
        raise BadInput("not a query of key=value pairs", where="query", remedy=_EXAMPLE) from None
    filters: dict[str, str] = {}
    for key, value in pairs:
        keyword = keyword_for_tag(int(key, 16)) if re.fullmatch(r"[0-9A-Fa-f]{8}", key) else key
        if key.lower() in RESERVED or not keyword or tag_for_keyword(keyword) is None:
            close = difflib.get_close_matches(key, keyword_dict, 1)
            raise BadInput(f"no DICOM attribute {key!r}", where="query", remedy=f"use {close[0]}" if close else _EXAMPLE)
        if not value.strip() or keyword in filters:
            raise BadInput(f"{keyword} is empty, or there twice", where="query", remedy=_EXAMPLE)
        filters[keyword] = value.strip()
    if recent_days is not None:
        if "StudyDate" in filters:
            raise BadInput("StudyDate beside recent_days", where="query", remedy="remove one of the two")
        filters["StudyDate"] = f"{date.today() - timedelta(days=recent_days):%Y%m%d}-"
    return filters
