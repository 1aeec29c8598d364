"""Ports for servers of the tests, which run in several processes at once."""

from __future__ import annotations

import secrets
import socket

LOWEST, HIGHEST = 10_000, 30_000
"""Below the range from which the kernel takes the ports of outgoing connections (32768 and up)."""


def free_port() -> int:
    """Return a random port of loopback that nobody listens on.

    A port that the kernel chooses is the next one that it gives to any other process, before the server of the test listens on it.
    """
    while True:
        port = LOWEST + secrets.randbelow(HIGHEST - LOWEST)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
