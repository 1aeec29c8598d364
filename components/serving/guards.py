"""Guards of the HTTP server: size of bodies, bearer token, hosts and origins, security headers."""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.errors import BadInput

TOKEN = "OMNIMRI_TOKEN"  # noqa: S105 (the name of a variable)
OPEN = ("/", "/ping", "/health", "/page/")
"""Paths that need no token: they hold no data. A path with a final slash stands for all below."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "worker-src blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def required_token(host: str, is_forced: bool) -> str | None:
    """Return the token of the environment that requests must carry; None on loopback or if forced.

    Raises:
        BadInput: no token, although other machines can reach the host.
    """
    token = os.environ.get(TOKEN, "").strip()
    if token:
        return token
    if not is_loopback(host) and not is_forced:
        remedy = f"set {TOKEN} to a secret that clients send as a bearer token, or add --without-token"
        raise BadInput("other machines can reach this address, and no token is set", where=f"--host {host}", remedy=remedy)
    return None


def error_body(what: str, where: str = "", remedy: str = "") -> dict[str, Mapping[str, str]]:
    """Return the body of an error: fault, place, remedy."""
    return {"error": {"what": what, "where": where, "remedy": remedy}}


@dataclass(frozen=True)
class Guards:
    """ASGI application around another one that checks every request.

    Attributes:
        request_bytes: largest body, checked while it is received.
        token: that requests must carry; None = none.
        hosts: names under which a server without a token may be addressed (against DNS rebinding); None = any.
    """

    app: ASGIApp
    request_bytes: int
    token: str | None
    hosts: tuple[str, ...] | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in present]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        await self.app(scope, self._limited(receive), send_with_headers)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> JSONResponse | None:
        """Return the refusal of a request by its headers; None if they are right."""
        host = headers.get("host", "")
        if self.hosts is not None and (urlsplit(f"//{host}").hostname or "") not in self.hosts:
            remedy = "address the server by the name that it listens on"
            return JSONResponse(error_body("not a name of this server", "Host", remedy), 421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse(error_body("a page of another site", "Origin", "use the page of this server"), 403)
        is_open = any(path == one or (len(one) > 1 and one.endswith("/") and path.startswith(one)) for one in OPEN)
        if self.token is not None and not is_open:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), self.token.encode()):
                body = error_body("no token, or a wrong one", "Authorization", f"send the server's {TOKEN} as a bearer token")
                return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.request_bytes:
            return JSONResponse(self._too_large(), 413)
        return None

    def _too_large(self) -> dict[str, Mapping[str, str]]:
        return error_body("the request is too large", "body", f"at most {self.request_bytes} bytes")

    def _limited(self, receive: Receive) -> Receive:
        """Return a receiver that ends the request when its body exceeds the limit."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.request_bytes:
                    raise HTTPException(413, self._too_large()["error"])  # type: ignore[arg-type]
            return message

        return limited
