"""Which failures pass by themselves: a server that restarts, a network that blinks, a database that is busy. Only those are tried
again; a gate that refuses, wrong input, or a job that failed will fail again."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from typing import Any

from prefect.cache_policies import NO_CACHE

from components.errors import OmniMRIError

PASSING_ERRORS = frozenset({errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETUNREACH})
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def passes(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    import httpx
    import requests
    from mlflow.exceptions import RestException
    from sqlalchemy.exc import OperationalError

    if isinstance(error, OmniMRIError):
        return False
    for one in _chain(error):
        if isinstance(one, RestException):
            return one.get_http_status_code() in PASSING_STATUS
        if isinstance(one, httpx.HTTPStatusError):
            return one.response.status_code in PASSING_STATUS
        if isinstance(one, (ConnectionError, TimeoutError, httpx.TransportError, requests.ConnectionError, requests.Timeout)):
            return True
        if isinstance(one, (sqlite3.OperationalError, OperationalError)):
            return any(word in str(one) for word in ("locked", "connection", "could not connect"))
        if isinstance(one, OSError) and one.errno in PASSING_ERRORS:
            return True
    return False


def _may_pass(task: Any, run: Any, state: Any) -> bool:
    error = state.data if isinstance(state.data, BaseException) else getattr(state.data, "result", None)
    if not isinstance(error, BaseException):
        error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and passes(error)


STEP: dict[str, Any] = {
    "retries": 4,
    "retry_delay_seconds": [2, 8, 30, 60],
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": _may_pass,
    "cache_policy": NO_CACHE,
}
"""Options of every task. What has been done is known by content (``flows.steps``), not by Prefect's cache."""
