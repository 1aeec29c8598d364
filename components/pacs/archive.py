"""The operations of an archive that both protocols implement, and their faults."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.errors import BadInput, JobFailed
from components.pacs.address import Server
from components.pacs.credentials import CredentialsOf, variable

UID = re.compile(r"[0-9]+(\.[0-9]+)*")
MAX_UID = 64


def is_uid(text: object) -> bool:
    """Return whether a text is a UID (PS3.5, 9.1), apart from leading zeros, which some devices write."""
    return isinstance(text, str) and len(text) <= MAX_UID and UID.fullmatch(text) is not None


class ServerFault(Exception):
    """The server does not answer, or answers with something broken: the same request may succeed later.

    The message quotes no answer: that may contain a patient's data.
    """


@dataclass(frozen=True)
class RemoteSeries:
    """A series that an archive lists.

    Attributes:
        study, series: Study and Series Instance UID.
        modality: upper case; "" if the archive does not state it.
        instances: number of instances; None if the archive does not state it.
    """

    study: str
    series: str
    modality: str
    instances: int | None


class Archive(Protocol):
    """An archive behind DICOMweb or DIMSE.

    Methods raise :class:`ServerFault` for what may succeed later, and :class:`BadInput` for what will not.
    """

    server: Server

    def list_series(self, filters: Mapping[str, str]) -> list[RemoteSeries]:
        """Return the series that match, sorted by study and series; those without a valid UID are left out."""

    def list_instances(self, study: str) -> dict[str, frozenset[str]]:
        """Return Series Instance UID -> SOP Instance UIDs of a study."""

    def fetch(self, series: RemoteSeries, instances: Collection[str] | None, folder: Path) -> Iterator[Path]:
        """Write the instances of a series (None = all) to files of a folder; yield each file when it is complete."""

    def find_instances(self, study: str, instances: Collection[str]) -> frozenset[str] | None:
        """Return which of these instances of a study the archive has; None if it cannot be asked."""

    def store(self, files: Sequence[Path]) -> None:
        """Store DICOM files of one study.

        Raises:
            JobFailed: the archive refuses one.
        """


def open_archive(server: Server, credentials_of: CredentialsOf) -> Archive:
    """Return the client of a server.

    Raises:
        BadInput: faulty credentials.
    """
    if server.protocol == "web":
        from components.pacs.dicomweb import DicomWebArchive

        return DicomWebArchive(server, credentials_of(server.name))
    from components.pacs.dimse import DimseArchive

    return DimseArchive(server)


def access_refused(server: Server, reason: str) -> BadInput:
    """Return the error for an archive that refuses access."""
    names = ", ".join(variable(server.name, part) for part in ("USER", "PASSWORD", "TOKEN"))
    return BadInput(
        f"the server refuses access ({reason})", where=server.label, remedy=f"check {names}, and what the account may do"
    )


def no_answer(server: Server, reason: str) -> JobFailed:
    """Return the error for an archive that does not answer."""
    return JobFailed(
        f"no usable answer: {reason}", where=server.label, remedy="check the server; then run the command again: it resumes"
    )
