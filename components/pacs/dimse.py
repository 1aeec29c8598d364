"""An archive behind DIMSE: C-FIND, C-GET and C-STORE by pynetdicom (PS3.4 B and C, PS3.7).

C-GET sends the images over the association that asked for them, so that no port of this machine has to be open (unlike C-MOVE).
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydicom import Dataset, dcmread
from pydicom.uid import (
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, Association, _config, build_role, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # created when the module is imported
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
)

from components.errors import BadInput, JobFailed
from components.pacs.address import Server
from components.pacs.archive import RemoteSeries, ServerFault, is_uid

IMAGE_CLASSES = (
    MRImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    SegmentationStorage,
    RTStructureSetStorage,
)
"""Storage classes that ingestion reads."""
STUDY_KEYS = frozenset(
    {
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription", "AccessionNumber", "ModalitiesInStudy"),
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "ReferringPhysicianName", "InstitutionName"),
    }
)
"""Keys that are matched at the level of studies (PS3.4 C.6.2.1); all others at that of series."""
_PENDING, _WARNINGS = (0xFF00, 0xFF01), range(0xB000, 0xC000)
_REJECTED_TITLES = (3, 7)
"""Reasons of the rejection of an association: calling or called AE title not recognized (PS3.8 9.3.4)."""
_serial = count()


def silence_network_library() -> None:
    """Keep pynetdicom from logging what is asked and answered: it contains names and UIDs."""
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_RESPONSE_IDENTIFIERS = _config.LOG_REQUEST_IDENTIFIERS = False


def send_at_once(event: evt.Event) -> None:
    """Switch Nagle's algorithm off: a request goes out in two parts, and would wait 40 ms for the receipt of the first."""
    connection = event.assoc.dul.socket
    if connection is not None and connection.socket is not None:
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class DimseArchive:
    """Client of one server; see :class:`components.pacs.archive.Archive`. Each operation has an association of its own."""

    def __init__(self, server: Server) -> None:
        silence_network_library()
        self.server = server
        parts = urlsplit(server.url)
        self._host, self._port, self._title = str(parts.hostname), int(parts.port or 104), str(parts.username)

    def list_series(self, filters: Mapping[str, str]) -> list[RemoteSeries]:
        """See :class:`components.pacs.archive.Archive`."""
        study_keys = {key: value for key, value in filters.items() if key in STUDY_KEYS}
        series_keys = {key: value for key, value in filters.items() if key not in STUDY_KEYS}
        if "Modality" in filters:
            study_keys.setdefault("ModalitiesInStudy", filters["Modality"])
        found: list[RemoteSeries] = []
        with self._associate([StudyRootQueryRetrieveInformationModelFind]) as association:
            studies = {
                str(one.get("StudyInstanceUID", "")) for one in _find(association, "STUDY", {"StudyInstanceUID": "", **study_keys})
            }
            for study in sorted(filter(is_uid, studies)):
                keys = {"SeriesInstanceUID": "", "Modality": "", "NumberOfSeriesRelatedInstances": "", **series_keys}
                answers = _find(association, "SERIES", {**keys, "StudyInstanceUID": study})
                found += [series for one in answers if (series := _series_of(study, one)) is not None]
        return sorted(set(found), key=lambda one: (one.study, one.series))

    def list_instances(self, study: str) -> dict[str, frozenset[str]]:
        """See :class:`components.pacs.archive.Archive`."""
        with self._associate([StudyRootQueryRetrieveInformationModelFind]) as association:
            answers = _find(association, "SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": ""})
            names = sorted({str(one.get("SeriesInstanceUID", "")) for one in answers})
            return {name: self._list_series_instances(association, study, name) for name in names if is_uid(name)}

    def _list_series_instances(self, association: Association, study: str, series: str) -> frozenset[str]:
        keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": ""}
        answers = _find(association, "IMAGE", keys)
        return frozenset(name for one in answers if is_uid(name := str(one.get("SOPInstanceUID", ""))))

    def fetch(self, series: RemoteSeries, instances: Collection[str] | None, folder: Path) -> Iterator[Path]:
        """See :class:`components.pacs.archive.Archive`."""
        arrived: list[Path] = []

        def write(event: evt.Event) -> int:
            path = folder / f"{next(_serial):06d}.part"
            path.write_bytes(event.encoded_dataset())
            arrived.append(path)
            return 0x0000

        keys = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.series}
        level = "SERIES" if instances is None else "IMAGE"
        if instances is not None:
            keys["SOPInstanceUID"] = "\\".join(sorted(instances))
        with self._associate([StudyRootQueryRetrieveInformationModelGet], IMAGE_CLASSES, write) as association:
            request = _identifier(level, keys)
            for status, _ in association.send_c_get(request, StudyRootQueryRetrieveInformationModelGet):
                _check_status(status, also=_WARNINGS)  # sub-operations that failed are asked for again
                while arrived:
                    yield arrived.pop(0)
            yield from arrived

    def find_instances(self, study: str, instances: Collection[str]) -> frozenset[str] | None:
        """See :class:`components.pacs.archive.Archive`."""
        try:
            present = self.list_instances(study).values()
        except BadInput:
            return None  # an archive that only takes objects
        return frozenset(instances) & frozenset().union(*present)

    def store(self, files: Sequence[Path]) -> None:
        """See :class:`components.pacs.archive.Archive`."""
        objects = [dcmread(file) for file in files]
        contexts = {(str(one.SOPClassUID), str(one.file_meta.TransferSyntaxUID)) for one in objects}
        with self._associate([], (), None, sorted(contexts)) as association:
            for one in objects:
                status = association.send_c_store(one).get("Status")
                if status is None:
                    raise ServerFault("the association ended")
                if status != 0x0000 and status not in _WARNINGS:
                    raise JobFailed(
                        f"the server refuses an object (status {status:04X})",
                        where=self.server.label,
                        remedy="see the server's log, and PS3.4 B.2.3 for the status",
                    )

    @contextmanager
    def _associate(
        self,
        models: Sequence[str],
        received: Sequence[str] = (),
        on_store: Callable[[evt.Event], int] | None = None,
        sent: Sequence[tuple[str, str]] = (),
    ) -> Iterator[Association]:
        """Open an association.

        Args:
            models: information models of queries and retrievals; all must be accepted.
            received: storage classes that the server may send.
            on_store: called with each object that the server sends.
            sent: storage class and transfer syntax of objects to send; all must be accepted.
        """
        entity = AE(ae_title=self.server.settings.ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.server.timeout_s
        entity.connection_timeout = min(self.server.timeout_s, 10.0)
        for model in models:
            entity.add_requested_context(model)
        for storage in received:
            entity.add_requested_context(storage, ALL_TRANSFER_SYNTAXES)
        for storage, syntax in sent:
            entity.add_requested_context(storage, syntax)
        handlers: list[Any] = [(evt.EVT_CONN_OPEN, send_at_once)]
        if on_store is not None:
            handlers.append((evt.EVT_C_STORE, on_store))
        association = entity.associate(
            self._host,
            self._port,
            ae_title=self._title,
            ext_neg=[build_role(storage, scp_role=True) for storage in received],
            evt_handlers=handlers,
            tls_args=(_tls_context(self.server), self._host) if self.server.is_encrypted else None,
        )
        try:
            self._require(association, [*models, *(storage for storage, _ in sent)])
            yield association
        finally:
            if association.is_established:
                association.release()
            else:
                association.abort()

    def _require(self, association: Association, classes: Sequence[str]) -> None:
        """Require an association with these classes.

        Raises:
            BadInput: the server rejects our titles, or does not offer the service.
            ServerFault: it does not answer.
        """
        if association.is_rejected:
            primitive = association.acceptor.primitive
            if primitive is not None and primitive.diagnostic in _REJECTED_TITLES:
                remedy = "register ae_title of the server's settings there, and check the title in its address"
                raise BadInput("the server does not know one of the AE titles", where=self.server.label, remedy=remedy)
            raise ServerFault("the association is rejected")
        if not association.is_established:
            raise ServerFault("no association")
        accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        if not set(map(str, classes)) <= accepted:
            remedy = "use its DICOMweb address, or ask its administrator"
            raise BadInput("the server does not offer this service", where=self.server.label, remedy=remedy)


def _tls_context(server: Server) -> ssl.SSLContext:
    """Return a context that verifies the server and presents our certificate."""
    settings = server.settings
    context = ssl.create_default_context(cafile=str(settings.ca) if settings.ca else None)
    if settings.certificate:
        context.load_cert_chain(settings.certificate, settings.certificate_key)
    return context


def _identifier(level: str, keys: Mapping[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    for key, value in keys.items():
        setattr(identifier, key, value)
    return identifier


def _find(association: Association, level: str, keys: Mapping[str, str]) -> list[Dataset]:
    """Return the answers to a query."""
    answers = []
    for status, answer in association.send_c_find(_identifier(level, keys), StudyRootQueryRetrieveInformationModelFind):
        _check_status(status)
        if answer is not None:
            answers.append(answer)
    return answers


def _check_status(status: Any, also: Collection[int] = ()) -> None:
    """Require success, or one of further statuses.

    Raises:
        ServerFault: the server reports a failure, or the association has ended.
    """
    code = status.get("Status")
    if code is None:
        raise ServerFault("the association ended")
    if code != 0x0000 and code not in _PENDING and code not in also:
        raise ServerFault(f"status {code:04X}")


def _series_of(study: str, answer: Dataset) -> RemoteSeries | None:
    series, number = str(answer.get("SeriesInstanceUID", "")), str(answer.get("NumberOfSeriesRelatedInstances") or "")
    if not is_uid(series):
        return None
    return RemoteSeries(
        study, series, str(answer.get("Modality") or "").strip().upper(), int(number) if number.isdecimal() else None
    )
