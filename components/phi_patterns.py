"""What text that could name a patient looks like. For refusing it: nothing that matches is ever repeated in a message."""

from __future__ import annotations

import re

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NAMED = r"\w\^\w|\S+@\S+\.\S+|(?<![0-9A-Za-z])\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(?![0-9A-Za-z])"
_TITLED = r"\b(?:Mr|Mrs|Ms|Dr|Prof)\.? [A-Z][a-z]+"
_PHONE = r"\+?\(?\d{2,4}\)?[ /-]\d{3,4}[ -]\d{3,4}"
IDENTIFYING = (
    rf"(?i:{_NAMED}|\b(?:19|20)\d{{2}}(?:[01]\d[0-3]\d|[-./][01]?\d[-./][0-3]?\d)\b|\b\d{{7,}}\b"
    rf"|\b\d{{1,2}}[. -]{{1,2}}{_MONTH}[. ,-]{{1,2}}(?:19|20)\d\d\b|\b{_MONTH} \d{{1,2}},? (?:19|20)\d\d\b)|{_TITLED}|{_PHONE}"
)
"""Dates, numbers of seven or more digits, DICOM person names (``Doe^Jane``), e-mail addresses, titled names, telephone numbers: for
text."""
IDENTIFYING_NAME = rf"(?:{_NAMED})"
"""The same for series and file names. These hold hexadecimal digests, some of which are long numbers by chance."""
_COMPILED = re.compile(IDENTIFYING)


def identifies(text: str) -> bool:
    """Whether a text holds something that could name a patient."""
    return _COMPILED.search(text) is not None
