"""Addresses of studies on servers of the settings; no DICOM library is imported, because every prediction looks for them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from components.errors import BadInput
from components.pacs.archive import is_uid

_ADDRESS = re.compile(r"dicomweb://(?P<server>[a-z0-9][a-z0-9-]*)/studies/(?P<study>[0-9.]+)(/series/(?P<series>[0-9.]+))?/?")


@dataclass(frozen=True)
class StudyAddress:
    """A study, or one series of it, on a server of the settings: ``dicomweb://NAME/studies/UID[/series/UID]``.

    Attributes:
        series: Series Instance UID; None = all MR series of the study.
    """

    server: str
    study: str
    series: str | None = None

    @classmethod
    def parse(cls, text: str) -> StudyAddress:
        """Read an address.

        Raises:
            BadInput: it is malformed.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or not all(is_uid(match[part]) for part in ("study", "series") if match[part]):
            remedy = "dicomweb://NAME/studies/UID, or /studies/UID/series/UID, with NAME from pacs.servers of the profile"
            raise BadInput("not the address of a study", where="IMAGES", remedy=remedy)
        return cls(match["server"], match["study"], match["series"])


def is_study_address(text: str) -> bool:
    """Return whether an input is on a server rather than in a file."""
    return text.startswith("dicomweb:")
