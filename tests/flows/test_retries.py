"""Only transient failures are retried."""

from __future__ import annotations

import errno
import sqlite3

import httpx
import pytest
import requests
from mlflow.exceptions import RestException

from components.errors import BadInput, GateRefused, JobFailed
from flows.retries import is_transient

REQUEST = httpx.Request("GET", "http://127.0.0.1")


def wrapped(cause: Exception) -> RuntimeError:
    error = RuntimeError("a library's own")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        httpx.ConnectError("refused"),
        httpx.HTTPStatusError("busy", request=REQUEST, response=httpx.Response(503)),
        requests.ConnectionError(),
        RestException({"error_code": "TEMPORARILY_UNAVAILABLE"}),
        sqlite3.OperationalError("database is locked"),
        OSError(errno.ESTALE, "stale file handle"),
        wrapped(ConnectionRefusedError()),
    ],
    ids=repr,
)
def test_failures_of_a_restarting_service_are_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        BadInput("wrong"),
        GateRefused("worse"),
        JobFailed("ended with status 1"),
        ValueError("a fault of ours"),
        httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(404)),
        RestException({"error_code": "RESOURCE_DOES_NOT_EXIST"}),
        sqlite3.OperationalError("no such table"),
        OSError(errno.ENOSPC, "no space left"),
        PermissionError(errno.EACCES, "no"),
    ],
    ids=repr,
)
def test_permanent_failures_are_not_retried(error: Exception) -> None:
    assert not is_transient(error)


def test_a_user_facing_error_is_permanent_whatever_caused_it() -> None:
    refused = JobFailed("did not answer")
    refused.__cause__ = ConnectionError()
    assert not is_transient(refused)
