"""Client of a vision-language model behind an OpenAI-compatible server (vLLM), with schema-guided decoding.

Images are sent to the configured address only: proxies of the environment are not used, redirects are not followed.
"""

from __future__ import annotations

import base64
import os
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from components.curation.vlm.allowed_hosts import check_address
from components.curation.vlm.prompt import SYSTEM, VlmQuery, max_answer_length
from components.errors import BadInput, JobFailed
from components.provenance import digest
from components.settings import VisualSettings

TRANSIENT_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
"""HTTP statuses that are retried."""
MAX_WAIT_S = 30.0


class OpenAIClient:
    """Client of a model behind an address.

    Args:
        settings: ``server`` is set.
        first_wait_s: wait before the second attempt, seconds; doubled for each further attempt.

    Raises:
        BadInput: the address is not allowed, or the server does not serve the model.
        JobFailed: the server does not answer.
    """

    def __init__(self, settings: VisualSettings, first_wait_s: float = 1.0) -> None:
        base = check_address(str(settings.server), settings.allow_hosts)
        key = os.environ.get("OMNIMRI_VLM_KEY")
        self._settings, self._first_wait_s = settings, first_wait_s
        self._http = httpx.Client(
            base_url=base + "/",
            timeout=settings.timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        served = {model["id"]: model for model in self._call("GET", "models")["data"]}
        if settings.model not in served:
            raise BadInput(f"the server has no model {settings.model!r}", where=base, remedy=f"one of {', '.join(sorted(served))}")
        self.digest = digest(settings.model, served[settings.model].get("root"), settings.revision)[:16]

    def answer(self, queries: Sequence[VlmQuery], schema: dict[str, Any]) -> list[str]:
        """Return one JSON text for each query; the queries are sent concurrently, and the server batches them."""
        with ThreadPoolExecutor(len(queries)) as pool:
            return list(pool.map(lambda query: self._complete(query, schema), queries))

    def _complete(self, query: VlmQuery, schema: dict[str, Any]) -> str:
        reply = self._call("POST", "chat/completions", self._request_body(query, schema))
        choice = reply["choices"][0]
        if choice.get("finish_reason") != "stop":
            raise JobFailed(
                f"the answer ended with finish_reason {choice.get('finish_reason')}",
                where=query.volume_id,
                remedy="serve the model with a longer context",
            )
        return str(choice["message"]["content"])

    def _request_body(self, query: VlmQuery, schema: dict[str, Any]) -> dict[str, Any]:
        """Build a chat completion that is decoded greedily and constrained to the schema."""
        image = "data:image/png;base64," + base64.b64encode(query.encode_png()).decode()
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": query.question}]
        return {
            "model": self._settings.model,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "visual_description", "schema": schema, "strict": True},
            },
            "max_tokens": max_answer_length(self._settings.field_characters),
            "temperature": 0,
            "seed": 0,
        }

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request, with retries and exponential backoff for transient faults; errors never quote the body (an image)."""
        fault, retry_after_s = "", 0.0
        for attempt in range(self._settings.retries + 1):
            if attempt:
                time.sleep(self._wait_s(attempt, retry_after_s))
            retry_after_s = 0.0
            try:
                reply = self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                fault = type(error).__name__
                continue
            if reply.status_code in TRANSIENT_STATUSES:
                fault = f"status {reply.status_code}"
                retry_after_s = _seconds(reply.headers.get("Retry-After"))
                continue
            if reply.status_code != 200:
                raise BadInput(f"the server refuses with status {reply.status_code}", where=path, remedy="see the server's log")
            try:
                return reply.json()
            except ValueError:
                raise BadInput(
                    "the server does not answer in JSON", where=path, remedy="set an OpenAI-compatible address"
                ) from None
        raise JobFailed(
            f"no answer after {self._settings.retries + 1} attempts: {fault}",
            where=str(self._settings.server),
            remedy="check that the server runs, then curate again: existing answers are kept",
        )

    def _wait_s(self, attempt: int, retry_after_s: float) -> float:
        """Return the wait before an attempt: doubled each time, with jitter that spreads clients, at least ``Retry-After``."""
        backoff = self._first_wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return min(max(backoff, retry_after_s), MAX_WAIT_S)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
