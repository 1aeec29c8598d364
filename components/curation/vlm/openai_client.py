"""A vision-language model behind an OpenAI-compatible server (vLLM), asked with schema-guided decoding.

Nothing leaves by another way: no proxy of the environment is used, no redirect is followed.
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
from components.curation.vlm.prompt import SYSTEM, Ask, longest_answer
from components.errors import BadInput, JobFailed
from components.provenance import digest
from components.settings import VisualSettings

PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
"""Statuses that may pass by themselves."""
LONGEST_WAIT_S = 30.0


class ServedModel:
    """A model behind an address.

    Args:
        settings: ``server`` is set.
        first_wait_s: wait before the second attempt, seconds; doubled with each further one.

    Raises:
        BadInput: the address is not allowed, or the server does not have the model.
        JobFailed: the server does not answer.
    """

    def __init__(self, settings: VisualSettings, first_wait_s: float = 1.0) -> None:
        base = check_address(str(settings.server), settings.allow_hosts)
        key = os.environ.get("OMNIMRI_VLM_KEY")
        self._settings, self._first_wait_s = settings, first_wait_s
        self._client = httpx.Client(
            base_url=base + "/",
            timeout=settings.timeout_s,
            trust_env=False,
            follow_redirects=False,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )
        served = {one["id"]: one for one in self._call("GET", "models")["data"]}
        if settings.model not in served:
            raise BadInput(f"the server has no model {settings.model!r}", where=base, remedy=f"one of {', '.join(sorted(served))}")
        self.digest = digest(settings.model, served[settings.model].get("root"), settings.revision)[:16]

    def answer(self, asks: Sequence[Ask], schema: dict[str, Any]) -> list[str]:
        """One JSON text for each question, asked at the same time: the server batches them."""
        with ThreadPoolExecutor(len(asks)) as pool:
            return list(pool.map(lambda ask: self._answer(ask, schema), asks))

    def _answer(self, ask: Ask, schema: dict[str, Any]) -> str:
        image = "data:image/png;base64," + base64.b64encode(ask.png()).decode()
        reply = self._call(
            "POST",
            "chat/completions",
            {
                "model": self._settings.model,
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": ask.question}],
                    },
                ],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "visual_description", "schema": schema, "strict": True},
                },
                "max_tokens": longest_answer(self._settings.field_characters),
                "temperature": 0,
                "seed": 0,
            },
        )
        choice = reply["choices"][0]
        if choice.get("finish_reason") != "stop":
            raise JobFailed(
                f"the answer ended by {choice.get('finish_reason')}", where=ask.volume_id, remedy="give the server a longer context"
            )
        return str(choice["message"]["content"])

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One request, again with growing waits where the fault may pass; the body (an image) is never part of a message."""
        fault, asked_s = "", 0.0
        for attempt in range(self._settings.retries + 1):
            if attempt:
                time.sleep(self._wait_s(attempt, asked_s))
            asked_s = 0.0
            try:
                reply = self._client.request(method, path, json=body)
            except httpx.TransportError as error:
                fault = type(error).__name__
                continue
            if reply.status_code in PASSING:
                fault = f"status {reply.status_code}"
                asked_s = _seconds(reply.headers.get("Retry-After"))
                continue
            if reply.status_code != 200:
                raise BadInput(f"the server refuses with status {reply.status_code}", where=path, remedy="see the server's log")
            try:
                return reply.json()
            except ValueError:
                raise BadInput("the server does not speak JSON", where=path, remedy="give an OpenAI-compatible address") from None
        raise JobFailed(
            f"no answer after {self._settings.retries + 1} attempts: {fault}",
            where=str(self._settings.server),
            remedy="see that the server runs, then curate again: what is answered is kept",
        )

    def _wait_s(self, attempt: int, asked_s: float) -> float:
        """Doubling, with jitter so that many clients do not come back together; at least what the server asked for."""
        grown = self._first_wait_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return min(max(grown, asked_s), LONGEST_WAIT_S)


def _seconds(header: str | None) -> float:
    try:
        return max(float(header or 0), 0.0)
    except ValueError:
        return 0.0
