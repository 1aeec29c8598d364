"""Regular expressions for text that may identify a patient. They serve to reject text; messages must never repeat a match."""

from __future__ import annotations

import re

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_NAMED = r"\w\^\w|\S+@\S+\.\S+|(?<![0-9A-Za-z])\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(?![0-9A-Za-z])"
_TITLED = r"\b(?:Mr|Mrs|Ms|Dr|Prof)\.? [A-Z][a-z]+"
_PHONE = r"\+?\(?\d{2,4}\)?[ /-]\d{3,4}[ -]\d{3,4}"
PHI_PATTERN = (
    rf"(?i:{_NAMED}|\b(?:19|20)\d{{2}}(?:[01]\d[0-3]\d|[-./][01]?\d[-./][0-3]?\d)\b|\b\d{{7,}}\b"
    rf"|\b\d{{1,2}}[. -]{{1,2}}{_MONTH}[. ,-]{{1,2}}(?:19|20)\d\d\b|\b{_MONTH} \d{{1,2}},? (?:19|20)\d\d\b)|{_TITLED}|{_PHONE}"
)
"""For text: dates, numbers of seven or more digits, DICOM person names (``Doe^Jane``), e-mail addresses, titled names, telephone
numbers."""
PHI_NAME_PATTERN = rf"(?:{_NAMED})"
"""For names of series and files, without long numbers: these names contain hexadecimal digests, which may be all digits."""
_COMPILED = re.compile(PHI_PATTERN)


def contains_phi(text: str) -> bool:
    """Return whether a text contains protected health information (PHI): something that may identify a patient."""
    return _COMPILED.search(text) is not None
