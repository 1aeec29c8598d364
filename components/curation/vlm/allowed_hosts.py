"""Allowed destinations of images: this machine or the cluster; any other host only if the user names it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from components.errors import BadInput

_CLUSTER_SUFFIXES = (".svc", ".svc.cluster.local", ".cluster.local")


def check_address(url: str, allowed: Collection[str] = ()) -> str:
    """Return the address without a trailing slash if it is loopback, a service of the cluster, or a host in ``allowed``.

    A name that merely resolves to this machine is not trusted: others control how it resolves.

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
    if _is_loopback(host) or host == "localhost" or host.endswith(_CLUSTER_SUFFIXES) or host in allowed:
        return url.rstrip("/")
    raise BadInput(
        f"{host} is outside of this machine and its cluster; images would leave it",
        where="curation.visual.server",
        remedy=f"if this is intended, allow the host: curation.visual.allow_hosts: [{host}]",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
