"""Text of tables and sidecars in the encodings that spreadsheets and scanners' computers write."""

from __future__ import annotations

import codecs

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-32 LE begins with that of UTF-16 LE."""
_SAMPLE = 512


def decode_text(content: bytes) -> tuple[str, bool]:
    """Return the text, and whether its encoding is a Unicode one; any other text is read as Latin-1 (Windows-1252).

    UTF-16 without a mark is recognized by its zero bytes, which every second byte of a Western text is.
    """
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "")
    head = content[:_SAMPLE]
    for name, zeros in (("utf-16-be", head[::2].count(0)), ("utf-16-le", head[1::2].count(0))):
        if not encoding and 4 * zeros > len(head):  # more than half of the high bytes
            encoding = name
    try:
        return content.decode(encoding or "utf-8"), True
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), False
