"""Addresses of image archives, and which of them may be contacted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from components.allowed_hosts import is_own_host
from components.errors import BadInput
from components.settings import PacsSettings, ServerSettings

WEB, DIMSE = ("http", "https"), ("dicom", "dicom+tls")
SCHEMES = (*WEB, *DIMSE)
_FORMS = "https://host/dicom-web, dicom://AE_TITLE@host:port or dicom+tls://AE_TITLE@host:port"


@dataclass(frozen=True)
class Server:
    """An archive that may be contacted.

    Attributes:
        name: key in ``pacs.servers``; "" for a URL that is not listed there.
        settings: its address, and how it is contacted.
        timeout_s: see :class:`components.settings.PacsSettings`.
    """

    name: str
    settings: ServerSettings
    timeout_s: float

    @property
    def url(self) -> str:
        """The address without a trailing slash."""
        return self.settings.url.rstrip("/")

    @property
    def protocol(self) -> Literal["web", "dimse"]:
        """DICOMweb or DIMSE."""
        return "web" if urlsplit(self.url).scheme in WEB else "dimse"

    @property
    def is_encrypted(self) -> bool:
        """Return whether the connection uses TLS."""
        return urlsplit(self.url).scheme in ("https", "dicom+tls")

    @property
    def label(self) -> str:
        """Name for messages: the key in the settings, else host and port."""
        parts = urlsplit(self.url)
        return self.name or f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"


def is_address(text: str) -> bool:
    """Return whether a source names a server by URL rather than a folder."""
    return text.partition("://")[0] in SCHEMES and "://" in text


def find_server(text: str, pacs: PacsSettings) -> Server:
    """Return the server that a name of ``pacs.servers`` or a URL means, if it may be contacted.

    A URL that one of ``pacs.servers`` has gets that server's certificates and credentials.

    Raises:
        BadInput: no such name, a malformed URL, a missing certificate, or a host that the settings do not allow.
    """
    by_url = {settings.url.rstrip("/"): name for name, settings in pacs.servers.items()}
    name = by_url.get(text.rstrip("/"), "") if is_address(text) else text
    if not is_address(text) and text not in pacs.servers:
        known = ", ".join(sorted(pacs.servers)) or "none"
        raise BadInput(
            f"no such server in the profile; it names: {known}", where=text, remedy=f"add it to pacs.servers; or {_FORMS}"
        )
    settings = pacs.servers[name] if name else ServerSettings(url=text)
    server = Server(name, settings, pacs.timeout_s)
    _check(server, pacs)
    return server


def _check(server: Server, pacs: PacsSettings) -> None:
    where = f"pacs.servers.{server.name}" if server.name else "server"
    parts = _split(server.url, where)
    host = (parts.hostname or "").rstrip(".").lower()
    if not is_own_host(host):
        if host not in {allowed.lower().rstrip(".") for allowed in pacs.allow_hosts}:
            remedy = f"if this is intended, allow the host in the profile, or by --set pacs.allow_hosts=[{host}]"
            raise BadInput(f"{host} is outside of this machine and its cluster", where=where, remedy=remedy)
        if parts.scheme == "http":
            raise BadInput("patient data would be sent in plain text", where=where, remedy="use https://")
    for field in ("ca", "certificate", "certificate_key"):
        path: Path | None = getattr(server.settings, field)
        if path is not None and not path.is_file():
            raise BadInput("no such file", where=f"{where}.{field}: {path}", remedy="name a PEM file")
    if not server.is_encrypted and (server.settings.certificate or server.settings.ca):
        raise BadInput("certificates without an encrypted address", where=where, remedy="use https:// or dicom+tls://")


def _split(url: str, where: str) -> SplitResult:
    """Split an address.

    Raises:
        BadInput: it is malformed, or contains a password or a query.
    """
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in SCHEMES and bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment)
    except ValueError:
        raise BadInput("not an address of a server", where=where, remedy=f"e.g. {_FORMS}") from None
    if parts.scheme in WEB and (parts.username is not None or parts.password is not None):
        remedy = "remove it; the credentials come from the environment, see docs/pacs.md"
        raise BadInput("a user name or password in an address", where=where, remedy=remedy)
    if parts.scheme in DIMSE:
        title = parts.username or ""
        well_formed = well_formed and bool(re.fullmatch(r"[^\\\s]{1,16}", title)) and parts.port is not None
        well_formed = well_formed and parts.password is None and parts.path in ("", "/")
    elif parts.netloc.startswith("["):
        raise BadInput("an IPv6 address in brackets, which dicomweb-client does not read", where=where, remedy="use a host name")
    if not well_formed:
        raise BadInput("not an address of a server", where=where, remedy=f"e.g. {_FORMS}")
    return parts
