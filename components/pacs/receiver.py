"""A C-STORE receiver (PS3.4 B.2) for archives and scanners that send: a study is ingested when nothing has come for a while.

It is no archive: the sender keeps the originals, which are removed here as soon as they are ingested.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # created when the module is imported

from components.allowed_hosts import is_own_host
from components.errors import BadInput
from components.pacs.archive import RemoteSeries, is_uid
from components.pacs.dimse import IMAGE_CLASSES, send_at_once, silence_network_library
from components.pacs.fetching import FetchedSeries
from components.pacs.ledger import contains_all, tokens
from components.pacs.update import DatasetUpdate
from components.provenance import digest

SUCCESS, NO_SPACE, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
"""Statuses of C-STORE (PS3.4 B.2.3)."""
_PORTS = range(1, 65536)


@dataclass(frozen=True)
class Listener:
    """Where and from whom objects are received.

    Attributes:
        host, port: address to listen on.
        ae_title: our title; senders must call it.
        senders: titles of those who may send; empty = any, on this machine only.
        max_bytes: size of originals that wait to be ingested, beyond which further ones are refused.
        certificate, certificate_key, ca: PEM files for TLS; senders need a certificate of ``ca``.
    """

    host: str
    port: int
    ae_title: str = "OMNIMRI"
    senders: tuple[str, ...] = ()
    max_bytes: int = 16 * 10**9
    certificate: Path | None = None
    certificate_key: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        if not is_own_host(self.host) and not self.senders:
            remedy = "name who may send: --sender TITLE; a network between the two is best encrypted (--certificate, --ca)"
            raise BadInput("other machines could send anything", where=f"--host {self.host}", remedy=remedy)
        if self.port not in _PORTS:
            raise BadInput("no such port", where="--port", remedy="1 to 65535; 11112 is registered for DICOM")
        if (self.certificate is None) != (self.ca is None):
            raise BadInput("half of a TLS configuration", where="--certificate, --ca", remedy="give both")


@dataclass
class Inbox:
    """Objects that have arrived and are not ingested yet.

    Attributes:
        folder: private folder of the files.
        max_bytes: see :class:`Listener`.
    """

    folder: Path
    max_bytes: int
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _series: dict[tuple[str, str], dict[str, Path]] = field(default_factory=dict)
    _bytes: int = 0
    _last: float = 0.0
    _round: int = 0

    def take(self, content: bytes, study: str, series: str, instance: str) -> int:
        """Write an object; return the status for its sender. A second copy replaces the first."""
        if not all(map(is_uid, (study, series, instance))):
            return NOT_UNDERSTOOD
        with self._lock:
            if self._bytes + len(content) > self.max_bytes:
                return NO_SPACE
            target = self.folder / f"{self._round:06d}" / digest(study, series)[:24] / f"{digest(instance)[:24]}.dcm"
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.write_bytes(content)
            except OSError:
                target.unlink(missing_ok=True)
                return NO_SPACE
            self._series.setdefault((study, series), {})[instance] = target
            self._bytes += len(content)
            self._last = time.monotonic()
            return SUCCESS

    def settled(self, quiet_s: float) -> tuple[list[FetchedSeries], Path] | None:
        """Return all series and their folder if nothing has come for a time; later objects go to another folder."""
        with self._lock:
            if not self._series or time.monotonic() - self._last < quiet_s:
                return None
            taken = [
                FetchedSeries(RemoteSeries(study, series, "", len(files)), files) for (study, series), files in self._series.items()
            ]
            folder = self.folder / f"{self._round:06d}"
            self._series, self._bytes = {}, 0
            self._round += 1
            return taken, folder


class Receiver:
    """The network side: takes objects into an inbox while its context is open."""

    def __init__(self, listener: Listener, inbox: Inbox) -> None:
        silence_network_library()
        self._listener, self._inbox = listener, inbox
        self._entity = AE(ae_title=listener.ae_title)
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = list(listener.senders)
        self._entity.maximum_associations = 8
        self._entity.network_timeout = 120
        self._entity.add_supported_context(Verification)
        for storage in IMAGE_CLASSES:
            self._entity.add_supported_context(storage, ALL_TRANSFER_SYNTAXES)
        self._server: Any = None

    def __enter__(self) -> Receiver:
        where = (self._listener.host, self._listener.port)
        try:
            self._server = self._entity.start_server(
                where,
                block=False,
                evt_handlers=[(evt.EVT_CONN_OPEN, send_at_once), (evt.EVT_C_STORE, self._take)],
                ssl_context=_tls_context(self._listener),
            )
        except OSError as error:
            remedy = "choose another one, or end the program that uses it"
            raise BadInput(f"the port cannot be used ({error.strerror})", where=f"--port {where[1]}", remedy=remedy) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    @property
    def is_busy(self) -> bool:
        """Return whether a sender is connected."""
        return bool(self._entity.active_associations)

    def _take(self, event: evt.Event) -> int:
        try:
            header = event.dataset
            names = [str(UID(str(header.get(tag, "")))) for tag in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
            return self._inbox.take(event.encoded_dataset(), names[0], names[1], names[2])
        except Exception:  # whatever a library raises for a broken object; its message may quote the header
            return NOT_UNDERSTOOD


def _tls_context(listener: Listener) -> ssl.SSLContext | None:
    if listener.certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(listener.ca))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(listener.certificate, listener.certificate_key)
    return context


def split_fragments(received: Sequence[FetchedSeries], update: DatasetUpdate) -> tuple[list[FetchedSeries], list[FetchedSeries]]:
    """Return series to ingest, and fragments: series that lack an instance which was ingested before.

    A fragment would replace the whole series under ``data/``, whose originals are gone.
    """
    entries = update.ledger.entries(update.card.id)
    whole: list[FetchedSeries] = []
    fragments: list[FetchedSeries] = []
    for one in received:
        entry = entries.get(update.pseudonyms.uid(one.series.series))
        known = entry.members if entry is not None and entry.volumes else b""
        (whole if contains_all(tokens(update.pseudonyms, one.files), known) else fragments).append(one)
    return whole, fragments


def ingest_received(
    received: Sequence[FetchedSeries], folder: Path, update: DatasetUpdate, report: Callable[[str], object]
) -> None:
    """Ingest what has arrived, and remove the originals."""
    whole, fragments = split_fragments(received, update)
    for one in fragments:
        for path in one.files.values():
            path.unlink()
    if fragments:
        report(f"{len(fragments)} series are parts of series that are ingested already: not taken; send the whole series again")
    if whole:
        update.commit(whole, folder)
