"""OpenAI-compatible server for a local model: ``/v1/models`` and ``/v1/chat/completions`` over HTTP.

The schema of each request constrains decoding, with the same grammar engine as in the product. Faults can be injected.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import numpy as np
from PIL import Image

from components.curation.vlm.prompt import VlmQuery


class Answers(Protocol):
    """Interface of a model in curation."""

    def answer(self, queries: list[VlmQuery], schema: dict[str, Any]) -> list[str]: ...


@dataclass
class Served:
    """A running server.

    Attributes:
        faults: (status, headers) of the responses to the next completions, first to last.
        completions: bodies of the requested completions. authorizations: their Authorization headers.
    """

    model: Answers
    address: str = ""
    faults: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    completions: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def _image(url: str) -> np.ndarray:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64", "only images inside the request are supported: nothing is downloaded"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("L"))


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if self.path != "/v1/models":
                return self._reply(404, {"error": {"message": "not found", "type": "invalid_request_error"}})
            model = {"id": "tiny-qwen", "object": "model", "created": int(time.time()), "owned_by": "tests", "root": "tiny-qwen"}
            return self._reply(200, {"object": "list", "data": [model]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                return self._reply(404, {"error": {"message": "not found", "type": "invalid_request_error"}})
            with served.lock:
                served.completions.append(body)
                served.authorizations.append(self.headers.get("Authorization"))
                if served.faults:
                    status, headers = served.faults.pop(0)
                    return self._reply(status, {"error": {"message": "fault", "type": "server_error"}}, headers)
                form = body["response_format"]
                parts = body["messages"][-1]["content"]
                image = next(_image(part["image_url"]["url"]) for part in parts if part["type"] == "image_url")
                question = " ".join(part["text"] for part in parts if part["type"] == "text")
                (text,) = served.model.answer([VlmQuery("asked", "", question, image)], form["json_schema"]["schema"])
            tokens = {"prompt_tokens": 1, "completion_tokens": len(text), "total_tokens": 1 + len(text)}
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            return self._reply(
                200,
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": int(time.time()),
                    "model": body["model"],
                    "choices": [choice],
                    "usage": tokens,
                },
            )

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    return Handler


@contextmanager
def serving(model: Answers) -> Iterator[Served]:
    """Run a server on a free port of this machine for the length of the block."""
    served = Served(model)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(served))
    served.address = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
