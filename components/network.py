"""Addresses of servers on this machine: free ports, URLs of hosts, and proxies that must not stand in between."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request

from components.errors import BadInput

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (recognized, not listened on)
"""Addresses that mean every interface -> the one under which this machine reaches a server that listens there."""
NO_PROXY = ("NO_PROXY", "no_proxy")


def bypass_proxies(*hosts: str) -> None:
    """Exempt hosts from the proxies of the environment; do nothing where it names none.

    Prefect, MLflow and our own checks would otherwise ask the proxy for a server of this machine, which it cannot reach.
    """
    if not urllib.request.getproxies_environment():
        return
    listed = [host.strip() for name in NO_PROXY for host in os.environ.get(name, "").split(",") if host.strip()]
    exempt = ",".join(dict.fromkeys([*listed, *hosts]))
    os.environ.update({name: exempt for name in NO_PROXY})


def http_address(host: str, port: int) -> str:
    """Return the URL under which processes of this machine reach a server that listens on a host."""
    reachable = ANY.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def require_free_port(host: str, port: int, host_option: str, port_option: str) -> None:
    """Check that a server can listen on a host and port.

    Args:
        host_option, port_option: options of the command, which the messages name.

    Raises:
        BadInput: the host is no address of this machine, the port is in use, or it needs privileges.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror:
        raise BadInput("unknown host", where=f"{host_option} {host}", remedy="name an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BadInput("in use by another program", where=f"port {port}", remedy=f"choose another with {port_option}") from None
        if error.errno == errno.EACCES:
            remedy = f"choose one above 1023 with {port_option}"
            raise BadInput("this port needs privileges", where=f"port {port}", remedy=remedy) from None
        remedy = f"name an address of this machine with {host_option} (ip address lists them)"
        raise BadInput(f"cannot listen there: {error.strerror}", where=f"{host}, port {port}", remedy=remedy) from None
