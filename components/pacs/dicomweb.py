"""An archive behind DICOMweb: QIDO-RS and STOW-RS by dicomweb-client, WADO-RS streamed to files (PS3.18).

Requests go to the configured address only: proxies and credentials of the environment or of ``~/.netrc`` are not used, redirects
are not followed. Answers are read under limits of size and speed, because a server may be slow, broken or hostile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import requests
import urllib3
from dicomweb_client import DICOMwebClient
from pydicom import dcmread
from requests.auth import AuthBase, HTTPBasicAuth

from components.errors import BadInput, JobFailed
from components.pacs.address import Server
from components.pacs.archive import RemoteSeries, ServerFault, access_refused, is_uid
from components.pacs.credentials import Credentials
from components.pacs.multipart import PartFiles

PAGE = 500
"""Results that one query asks for; the server may return fewer."""
MAX_JSON_BYTES = 256 * 2**20
MIN_BYTES_PER_S = 256
"""An answer slower than this, over the timeout, counts as broken off."""
_CHUNK = 2**18
_STUDY, _SERIES, _INSTANCE, _MODALITY, _COUNT = "0020000D", "0020000E", "00080018", "00080060", "00201209"
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
"""Instances as they are stored: without it, a server may decompress them (PS3.18, 8.7.3.5.2)."""
_serial = count()


class _BearerToken(AuthBase):
    """Send a bearer token with each request to the server."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class DicomWebArchive:
    """Client of one server; see :class:`components.pacs.archive.Archive`."""

    def __init__(self, server: Server, credentials: Credentials) -> None:
        for name in ("dicomweb_client", "urllib3"):  # their messages quote UIDs and queries
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.server = server
        self._session = _open_session(server, credentials)
        timeout = (min(server.timeout_s, 10.0), server.timeout_s)
        self._client = DICOMwebClient(server.url, session=self._session, callback=self._read_answer, timeout=timeout)
        self._client.set_http_retry_params(retry=False)
        self._timeout = timeout

    def list_series(self, filters: Mapping[str, str]) -> list[RemoteSeries]:
        """See :class:`components.pacs.archive.Archive`."""

        def search(offset: int) -> list[dict[str, Any]]:
            fields = [_MODALITY, _COUNT]
            return self._client.search_for_series(limit=PAGE, offset=offset, search_filters=dict(filters), fields=fields)

        found = [_series_of(item) for item in self._pages(search, _SERIES)]
        return sorted((series for series in found if series is not None), key=lambda one: (one.study, one.series))

    def list_instances(self, study: str) -> dict[str, frozenset[str]]:
        """See :class:`components.pacs.archive.Archive`."""

        def search(offset: int) -> list[dict[str, Any]]:
            return self._client.search_for_instances(study, limit=PAGE, offset=offset)

        members: dict[str, set[str]] = {}
        for item in self._pages(search, _INSTANCE):
            series, instance = _value(item, _SERIES), _value(item, _INSTANCE)
            if is_uid(series) and is_uid(instance):
                members.setdefault(series, set()).add(instance)
        return {series: frozenset(instances) for series, instances in members.items()}

    def fetch(self, series: RemoteSeries, instances: Collection[str] | None, folder: Path) -> Iterator[Path]:
        """See :class:`components.pacs.archive.Archive`."""
        address = f"{self.server.url}/studies/{series.study}/series/{series.series}"
        if instances is None:
            yield from self._download(address, folder)
            return
        for instance in sorted(instances):
            yield from self._download(f"{address}/instances/{instance}", folder)

    def find_instances(self, study: str, instances: Collection[str]) -> frozenset[str]:
        """See :class:`components.pacs.archive.Archive`."""
        present = self.list_instances(study).values()
        return frozenset(instances) & frozenset().union(*present)

    def store(self, files: Sequence[Path]) -> None:
        """See :class:`components.pacs.archive.Archive`."""
        datasets = [dcmread(file) for file in files]
        with self._faults():
            answer = self._client.store_instances(datasets, datasets[0].StudyInstanceUID)
        failed = answer.get("FailedSOPSequence") or []
        if failed:
            reasons = ", ".join(sorted({f"{int(item.get('FailureReason') or 0):04X}" for item in failed}))
            remedy = "see the server's log, and PS3.4 B.2.3 for the reason"
            raise JobFailed(
                f"the server refuses {len(failed)} of {len(files)} objects (reason {reasons})",
                where=self.server.label,
                remedy=remedy,
            )

    def _pages(self, search: Callable[[int], list[dict[str, Any]]], key: str) -> Iterator[dict[str, Any]]:
        """Yield all results of a query, page by page, once each.

        A server may return fewer results than a page has, or ignore the offset: the last page is one without a new result.
        """
        seen: set[tuple[str, str]] = set()
        offset = 0
        while True:
            with self._faults():
                page = search(offset)
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise ServerFault("an answer that is no list of results")
            new = 0
            for item in page:
                name = str(_value(item, _SERIES)), str(_value(item, key))
                if name not in seen:
                    seen.add(name)
                    new += 1
                    yield item
            if new == 0:
                return
            offset += len(page)

    def _download(self, url: str, folder: Path) -> Iterator[Path]:
        """Stream one answer into files of a folder."""
        with self._faults(), self._session.get(url, headers={"Accept": _ACCEPT}, stream=True, timeout=self._timeout) as response:
            response.raise_for_status()
            parts = PartFiles(response.headers.get("Content-Type", ""), folder, f"{next(_serial):06d}-")
            try:
                for chunk in self._chunks(response):
                    parts.feed(chunk)
                    yield from parts.take()
                parts.finish()
                yield from parts.take()
            finally:
                parts.close()

    def _read_answer(self, response: requests.Response, **options: Any) -> requests.Response:
        """Read the body of an answer that is not streamed, under limits (a hook of requests)."""
        if options.get("stream"):
            return response
        content = bytearray()
        for chunk in self._chunks(response):
            content += chunk
            if len(content) > MAX_JSON_BYTES:
                raise ServerFault("an answer without end")
        response._content, response._content_consumed = bytes(content), True
        return response

    def _chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            ServerFault: it arrives too slowly.
        """
        started, received = time.monotonic(), 0
        while chunk := response.raw.read1(_CHUNK, decode_content=True):
            received += len(chunk)
            elapsed = time.monotonic() - started
            if elapsed > self.server.timeout_s and received < MIN_BYTES_PER_S * elapsed:
                raise ServerFault("an answer that trickles")
            yield chunk

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Convert errors of the libraries; their messages quote addresses with UIDs, and are dropped."""
        try:
            yield
        except requests.HTTPError as error:
            raise self._status_fault(error.response.status_code if error.response is not None else 500) from None
        except requests.exceptions.SSLError:
            remedy = "set ca, certificate and certificate_key of the server in the profile; TLS is always verified"
            raise BadInput(
                "the server's certificate is not trusted, or it does not accept ours", where=self.server.label, remedy=remedy
            ) from None
        except requests.TooManyRedirects:
            remedy = "give the address that it leads to, if that is the server"
            raise BadInput("the server redirects to another address", where=self.server.label, remedy=remedy) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
            raise ServerFault(f"no complete answer ({type(error).__name__})") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ServerFault(f"an answer that is no DICOM JSON ({type(error).__name__})") from None

    def _status_fault(self, status: int) -> Exception:
        if status in (401, 403, 407):
            return access_refused(self.server, f"status {status}")
        if status in (408, 425, 429) or status >= 500 or status in (404, 409, 410):
            return ServerFault(f"status {status}")
        return BadInput(
            f"the server refuses the request (status {status})", where=self.server.label, remedy="check address and query"
        )


def _open_session(server: Server, credentials: Credentials) -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    settings = server.settings
    session.verify = str(settings.ca) if settings.ca else True
    if settings.certificate:
        session.cert = (
            (str(settings.certificate), str(settings.certificate_key)) if settings.certificate_key else str(settings.certificate)
        )
    if credentials.token:
        session.auth = _BearerToken(credentials.token)
    elif credentials.user:
        session.auth = HTTPBasicAuth(credentials.user, credentials.password)
    return session


def _value(item: Mapping[str, Any], tag: str) -> Any:
    """Return the first value of an attribute in DICOM JSON (PS3.18 F.2); None where there is none."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _series_of(item: Mapping[str, Any]) -> RemoteSeries | None:
    """Return the series of a result; None if it has no valid UIDs."""
    study, series = _value(item, _STUDY), _value(item, _SERIES)
    if not (is_uid(study) and is_uid(series)):
        return None
    modality, number = _value(item, _MODALITY), _value(item, _COUNT)
    instances = int(number) if isinstance(number, int | float | str) and str(number).isdecimal() else None
    return RemoteSeries(study, series, str(modality or "").strip().upper(), instances)
