"""An HTTP proxy in front of an archive that delays, cuts, garbles or replaces answers."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


@dataclass
class Answer:
    """An answer on its way to the client.

    Attributes:
        cut_after: bytes after which the connection is closed; None = all are sent.
        pause_s: wait before each byte of the body, seconds; 0 = none.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    cut_after: int | None = None
    pause_s: float = 0.0


Fault = Callable[[str, Answer], Answer]
"""Changes the answer to a path with query."""


@dataclass
class FaultyProxy:
    """The proxy.

    Attributes:
        port: of the proxy.
        upstream: address of the archive.
        fault: changes the answers.
        requests: paths that were asked for.
    """

    port: int
    upstream: str
    fault: Fault = lambda path, answer: answer
    requests: list[str] = field(default_factory=list)
    scheme: str = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/dicom-web"

    def forward(self, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        """Return the answer of the archive, changed by the fault."""
        self.requests.append(path)
        with requests.Session() as session:
            session.trust_env = False
            kept = {key: value for key, value in headers.items() if key.lower() in ("accept", "authorization", "content-type")}
            try:
                real = session.request("GET" if body is None else "POST", f"{self.upstream}{path}", headers=kept, data=body)
                answer = Answer(real.status_code, {"Content-Type": real.headers.get("Content-Type", "")}, real.content)
            except requests.ConnectionError:
                answer = Answer(502, {}, b"")
        return self.fault(path, answer)


@contextmanager
def faulty_proxy(
    upstream: str, fault: Fault = lambda path, answer: answer, tls: ssl.SSLContext | None = None
) -> Iterator[FaultyProxy]:
    """Run a proxy on loopback, encrypted with a TLS context."""

    class Handler(BaseHTTPRequestHandler):
        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            body = answer.body if answer.cut_after is None else answer.body[: answer.cut_after]
            with suppress(OSError):
                if not answer.pause_s:
                    self.wfile.write(body)
                for start in range(len(body) if answer.pause_s else 0):
                    self.wfile.write(body[start : start + 1])
                    time.sleep(answer.pause_s)

        def do_GET(self) -> None:
            self._send(proxy.forward(self.path, dict(self.headers)))

        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            self._send(proxy.forward(self.path, dict(self.headers), body))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    proxy = FaultyProxy(server.server_address[1], upstream, fault, scheme="https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
