"""Servers of this machine: proxies do not stand in between; what keeps a server from listening is told before it is loaded."""

from __future__ import annotations

import os
import socket
import urllib.request

import pytest
import requests.utils

from components.errors import BadInput
from components.network import LOOPBACK, NO_PROXY, bypass_proxies, http_address, require_free_port

PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")  # restored at the end, whatever the code under test sets
            monkeypatch.delenv(spelling)
    for name in NO_PROXY:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("listed", ["", "intranet,.example.org"])
def test_loopback_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str, listed: str) -> None:
    """urllib, requests (MLflow) and httpx (Prefect) agree; hosts that the user has listed stay exempt, others do not become so."""
    import httpx

    monkeypatch.setenv(proxy, "http://proxy.invalid:3128")
    if listed:
        monkeypatch.setenv("no_proxy", listed)
    bypass_proxies(*LOOPBACK)
    for host in ("127.0.0.1", "localhost", *([".example.org"] if listed else [])):
        assert urllib.request.proxy_bypass(f"{host}:4200")
        assert requests.utils.should_bypass_proxies(f"http://{host}:4200", no_proxy=None)
    assert not urllib.request.proxy_bypass("remote.invalid")
    with httpx.Client() as client:
        mounts = {pattern.pattern for pattern, transport in client._mounts.items() if transport is None}
        assert {"all://127.0.0.1", "all://localhost", "all://[::1]"} <= mounts


def test_without_a_proxy_nothing_is_set() -> None:
    bypass_proxies(*LOOPBACK)
    assert not any(name in os.environ for name in NO_PROXY)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:5"), ("::1", "http://[::1]:5"), ("0.0.0.0", "http://127.0.0.1:5"), ("::", "http://[::1]:5")],
)
def test_an_address_of_a_server_is_a_url_that_reaches_it(host: str, url: str) -> None:
    assert http_address(host, 5) == url


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
def test_a_port_in_use_is_named_with_its_option(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        try:
            other.bind((host, 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = other.getsockname()[1]
        other.listen(1)
        with pytest.raises(BadInput, match=rf"port {port}: in use by another program \(choose another with --port\)"):
            require_free_port(host, port, "--host", "--port")


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "::ffff:192.0.2.1", "2001:db8::1"])
def test_a_host_of_another_machine_is_not_called_a_port_in_use(host: str) -> None:
    with pytest.raises(BadInput, match="address of this machine") as refused:
        require_free_port(host, 4200, "--host", "--port")
    assert host in str(refused.value) and "in use" not in str(refused.value)
