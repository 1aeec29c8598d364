"""Hosts that images may go to or come from without the user's naming them: this machine and its cluster."""

from __future__ import annotations

import ipaddress

_CLUSTER_SUFFIXES = (".svc", ".svc.cluster.local", ".cluster.local")


def is_own_host(host: str) -> bool:
    """Return whether a host is loopback or a service of the cluster.

    A name that merely resolves to this machine is not trusted: others control how it resolves.
    """
    return host == "localhost" or host.endswith(_CLUSTER_SUFFIXES) or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
