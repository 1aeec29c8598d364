"""Retries of steps after transient failures: a restarting server, a network fault, a busy database.

Nothing else is retried: a gate that refuses, wrong input or a failed job would fail again.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from typing import Any

from prefect.cache_policies import NO_CACHE

from components.errors import OmniMRIError

TRANSIENT_ERRNO = frozenset({errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH})
TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
TRANSIENT_DATABASE_WORDS = ("locked", "connection", "could not connect")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may succeed a little later."""
    import httpx
    import requests
    from mlflow.exceptions import RestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, OmniMRIError):
        return False
    for cause in _causes(error):
        if isinstance(cause, RestException):
            return cause.get_http_status_code() in TRANSIENT_STATUS
        if isinstance(cause, httpx.HTTPStatusError):
            return cause.response.status_code in TRANSIENT_STATUS
        if isinstance(cause, (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)):
            return True
        if isinstance(cause, (sqlite3.OperationalError, OperationalError)):
            return any(word in str(cause) for word in TRANSIENT_DATABASE_WORDS)
        if isinstance(cause, OSError) and cause.errno in TRANSIENT_ERRNO:
            return True
    return False


def _failed_transiently(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task is to be retried (``retry_condition_fn`` of Prefect)."""
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    if not isinstance(error, BaseException):
        error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


STEP: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": [2, 8, 30, 60],
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": _failed_transiently,
    "cache_policy": NO_CACHE,
}
"""Options of every task. Finished work is found by its content (:mod:`flows.steps`), not by Prefect's cache."""
