"""Only what passes by itself is tried again."""

from __future__ import annotations

import errno
import sqlite3

import httpx
import pytest
import requests
from mlflow.exceptions import RestException

from components.errors import BadInput, GateRefused, JobFailed
from flows.retries import passes

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
def test_a_service_that_restarts_is_waited_for(error: Exception) -> None:
    assert passes(error)


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
def test_what_would_fail_again_fails_at_once(error: Exception) -> None:
    assert not passes(error)


def test_a_refusal_stays_one_whatever_it_came_of() -> None:
    refused = JobFailed("did not answer")
    refused.__cause__ = ConnectionError()
    assert not passes(refused)
