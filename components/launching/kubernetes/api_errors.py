"""Errors of the Kubernetes API: their messages, what a 403 means, and when one is worth repeating."""

from __future__ import annotations

import datetime
import json
import re
import time
from email.utils import parsedate_to_datetime

from kubernetes.client.exceptions import ApiException

from components.errors import JobFailed
from components.launching.kubernetes.rejections import classify_rejection

PERMISSIONS = "permissions"
"""``where`` of the error of a missing permission."""


def retry_after_s(error: Exception) -> float:
    """Return the seconds of the ``Retry-After`` header, or 0; a proxy may send a date instead (RFC 9110, section 10.2.3)."""
    value = str((getattr(error, "headers", None) or {}).get("Retry-After") or "0")
    try:
        return float(value)
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max((moment - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)


def error_message(error: ApiException) -> str:
    """Return the message of the API server's status object, or the reason of the HTTP status."""
    try:
        return str(json.loads(error.body or "{}").get("message") or error.reason)
    except ValueError:
        return str(error.body)


def forbidden_error(error: ApiException, verb: str, path: str) -> JobFailed:
    """Return the user-facing error for HTTP 403: an exceeded quota, a policy of the cluster, or a missing permission."""
    message = error_message(error)
    rejection = classify_rejection(message)
    if rejection.quota is not None or "exceeded quota" in message:
        return JobFailed(message, where="quota", remedy=rejection.remedy)
    if not rejection.forbidden:
        return JobFailed(f"the cluster refuses to {verb} {path}: {message}", where="admission", remedy=rejection.remedy)
    return JobFailed(f"not allowed to {verb} {path}: {message}", where=PERMISSIONS, remedy=rejection.remedy)


class PermissionHistory:
    """Requests (verb and kind of object; reading in any way is one) that the API server permitted before.

    They distinguish a temporary 403 (the server has started and has not read its roles yet) from a missing permission.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s, self._outage_at = patience_s, -float("inf")
        self._permitted: set[tuple[str, str]] = set()
        self._forbidden_since: dict[tuple[str, str], float] = {}

    def record_success(self, verb: str, path: str) -> None:
        """Remember that a request was permitted."""
        request = _request_class(verb, path)
        self._permitted.add(request)
        self._forbidden_since.pop(request, None)

    def record_outage(self) -> None:
        """Remember that the API server does not respond now."""
        self._outage_at = time.monotonic()

    def may_return(self, verb: str, path: str) -> bool:
        """Return whether a forbidden request is worth repeating."""
        request, now = _request_class(verb, path), time.monotonic()
        if request not in self._permitted and not self.is_after_outage():
            return False
        return now - self._forbidden_since.setdefault(request, now) <= self.patience_s

    def is_after_outage(self) -> bool:
        """Return whether the API server did not respond a short time ago: it may not know its roles and accounts yet."""
        return time.monotonic() - self._outage_at <= self.patience_s


def _request_class(verb: str, path: str) -> tuple[str, str]:
    """Return the verb and the path without the name of an object; get, list and watch count as one verb."""
    kind = re.sub(r"(/namespaces/[^/]+/[^/]+)/[^/]+", r"\1", path)
    return ("read" if verb in ("get", "list", "watch") else verb), kind
