"""A registered model over HTTP, in MLflow's scoring protocol, with the limits that MLflow's own server lacks.

``POST /invocations`` takes JSON (``dataframe_split``, ``dataframe_records``, ``inputs`` or ``instances``) of rows with ``image``
and ``instruction``. The body is counted while it comes in (413), held against its form before any model sees it (400, 415), and
answered one at a time: a short queue, then 429; an answer that takes too long is 504. An error names the fault and the remedy.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from mlflow.exceptions import MlflowException

from components.errors import BadInput
from components.inference.untrusted_input import Limits

COLUMNS = ("image", "instruction")
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")
USUAL = Limits()
logger = logging.getLogger(__name__)


def rows_of(body: bytes, limits: Limits) -> list[dict[str, str]]:
    """The rows of a request.

    Raises:
        BadInput: no JSON, or none of the forms.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("no JSON", where="body", remedy="send UTF-8 JSON with Content-Type: application/json") from None
    found = [form for form in FORMS if isinstance(content, dict) and form in content]
    if len(found) != 1:
        raise BadInput("not one of the known forms", where="body", remedy=f"one of {', '.join(FORMS)}")
    rows = _records(content[found[0]], found[0])
    if not 1 <= len(rows) <= limits.images:
        raise BadInput(f"{len(rows)} rows", where=found[0], remedy=f"1 to {limits.images} in a request")
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(COLUMNS) or not all(isinstance(value, str) for value in row.values()):
            raise BadInput("a row of another form", where=found[0], remedy=f"every row has {' and '.join(COLUMNS)}, both text")
    return rows


def _records(value: Any, form: str) -> list[Any]:
    if form == "dataframe_split":
        columns, data = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
        if (
            not isinstance(columns, list)
            or not isinstance(data, list)
            or not all(isinstance(row, list) and len(row) == len(columns) for row in data)
            or not all(isinstance(column, str) for column in columns)
        ):
            raise BadInput("no table", where=form, remedy='{"columns": ["image", "instruction"], "data": [[..., ...]]}')
        return [dict(zip(columns, row, strict=True)) for row in data]
    if isinstance(value, dict):  # one row, or columns of equal length
        if value and all(isinstance(column, list) for column in value.values()):
            lengths = {len(column) for column in value.values()}
            if len(lengths) != 1:
                raise BadInput("columns of unlike length", where=form, remedy="as many images as instructions")
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [value]
    return value if isinstance(value, list) else []


def app_of(answer: Callable[[pd.DataFrame], pd.DataFrame], limits: Limits = USUAL) -> FastAPI:
    """The server of a model.

    Args:
        answer: rows of ``image`` and ``instruction`` in, rows out; an exception of MLflow with a status of 4xx is passed on.
    """
    app = FastAPI(title="OmniMRI", docs_url=None, redoc_url=None, openapi_url=None)
    worker, waiting = ThreadPoolExecutor(1), 0

    def said(status: int, what: str, where: str = "", remedy: str = "") -> JSONResponse:
        return JSONResponse({"error": {"what": what, "where": where, "remedy": remedy}}, status)

    def ask(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{str(k): str(v) for k, v in row.items()} for row in answer(pd.DataFrame(rows)).to_dict("records")]

    @app.get("/ping")
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.post("/invocations")
    async def invocations(request: Request) -> JSONResponse:
        nonlocal waiting
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return said(415, "not JSON", "Content-Type", "application/json")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limits.request_bytes:
                return said(413, "a large request", "body", f"at most {limits.request_bytes} bytes")
        try:
            rows = rows_of(bytes(body), limits)
        except BadInput as error:
            return said(400, error.what, error.where, error.remedy)
        if waiting >= limits.queue:
            return said(429, "too many requests at once", "queue", "ask again in a while")
        waiting += 1
        future = asyncio.get_running_loop().run_in_executor(worker, ask, rows)
        future.add_done_callback(lambda _: _done())
        try:
            return JSONResponse({"predictions": await asyncio.wait_for(asyncio.shield(future), limits.seconds)})
        except TimeoutError:
            return said(504, "no answer in time", "model", f"{limits.seconds:.0f} s are allowed: ask about a smaller image")
        except MlflowException as error:
            status = error.get_http_status_code()
            return said(status if 400 <= status < 500 else 500, error.message, "request")
        except Exception as error:
            logger.error("a request failed: %s", type(error).__name__)  # no more: a message may quote a header
            return said(500, "the model failed", "model", "the server's log names the kind of failure")

    def _done() -> None:
        nonlocal waiting
        waiting -= 1

    return app


def serve(model_uri: str, tracking_uri: str, host: str, port: int, limits: Limits) -> None:
    """Load a version and serve it until the process is told to end."""
    import mlflow
    import uvicorn

    mlflow.set_tracking_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(model_uri, suppress_warnings=True)
    uvicorn.run(app_of(model.predict, limits), host=host, port=port, log_level="warning", timeout_keep_alive=30)
