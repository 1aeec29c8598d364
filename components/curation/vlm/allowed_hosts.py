"""Allowed destinations of images: this machine or the cluster; any other host only if the user names it."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from components.allowed_hosts import is_own_host
from components.errors import BadInput


def check_address(url: str, allowed: Collection[str] = ()) -> str:
    """Return the address without a trailing slash if it is loopback, a service of the cluster, or a host in ``allowed``.

    Raises:
        BadInput: any other host, or not an http(s) address.
    """
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
        well_formed = parts.scheme in ("http", "https") and bool(host) and parts.username is None and parts.port != 0
    except ValueError:
        well_formed, host = False, ""
    if not well_formed:
        raise BadInput("not an http address", where="curation.visual.server", remedy="e.g. http://127.0.0.1:8000/v1")
    if is_own_host(host) or host in allowed:
        return url.rstrip("/")
    raise BadInput(
        f"{host} is outside of this machine and its cluster; images would leave it",
        where="curation.visual.server",
        remedy=f"if this is intended, allow the host: curation.visual.allow_hosts: [{host}]",
    )
