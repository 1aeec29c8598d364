"""HTTP server of a registered model: MLflow's scoring protocol, with limits that MLflow's own server lacks.

``POST /invocations`` accepts JSON (``dataframe_split``, ``dataframe_records``, ``inputs`` or ``instances``) of rows with ``image``
and ``instruction``. The size of the body is checked while it is received (413) and its structure before the model is called (400,
415). Requests are predicted one at a time: after a short queue, 429; after the time limit, 504. Errors state fault and remedy.
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
LAYOUTS = ("dataframe_split", "dataframe_records", "inputs", "instances")
DEFAULT_LIMITS = Limits()
logger = logging.getLogger(__name__)


def parse_rows(body: bytes, limits: Limits) -> list[dict[str, str]]:
    """Return the rows of a request.

    Raises:
        BadInput: not JSON, or none of the four layouts.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("not JSON", where="body", remedy="send UTF-8 JSON with Content-Type: application/json") from None
    layouts = [layout for layout in LAYOUTS if isinstance(content, dict) and layout in content]
    if len(layouts) != 1:
        raise BadInput("not one of the known layouts", where="body", remedy=f"one of {', '.join(LAYOUTS)}")
    (layout,) = layouts
    rows = _records(content[layout], layout)
    if not 1 <= len(rows) <= limits.images:
        raise BadInput(f"{len(rows)} rows", where=layout, remedy=f"1 to {limits.images} in a request")
    for row in rows:
        if not isinstance(row, dict) or set(row) != set(COLUMNS) or not all(isinstance(value, str) for value in row.values()):
            raise BadInput("a row with other fields", where=layout, remedy=f"every row has {' and '.join(COLUMNS)}, both text")
    return rows


def _records(value: Any, layout: str) -> list[Any]:
    if layout == "dataframe_split":
        columns, data = (value.get("columns"), value.get("data")) if isinstance(value, dict) else (None, None)
        if (
            not isinstance(columns, list)
            or not isinstance(data, list)
            or not all(isinstance(row, list) and len(row) == len(columns) for row in data)
            or not all(isinstance(column, str) for column in columns)
        ):
            raise BadInput("not a table", where=layout, remedy='{"columns": ["image", "instruction"], "data": [[..., ...]]}')
        return [dict(zip(columns, row, strict=True)) for row in data]
    if isinstance(value, dict):  # one row, or columns of equal length
        if value and all(isinstance(column, list) for column in value.values()):
            lengths = {len(column) for column in value.values()}
            if len(lengths) != 1:
                raise BadInput("columns of different length", where=layout, remedy="as many images as instructions")
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [value]
    return value if isinstance(value, list) else []


def create_app(predict: Callable[[pd.DataFrame], pd.DataFrame], limits: Limits = DEFAULT_LIMITS) -> FastAPI:
    """Return the HTTP application of a model.

    Args:
        predict: maps rows of ``image`` and ``instruction`` to output rows; an MLflow exception with a 4xx status is passed on.
    """
    app = FastAPI(title="OmniMRI", docs_url=None, redoc_url=None, openapi_url=None)
    worker, waiting = ThreadPoolExecutor(1), 0

    def error_response(status: int, what: str, where: str = "", remedy: str = "") -> JSONResponse:
        return JSONResponse({"error": {"what": what, "where": where, "remedy": remedy}}, status)

    def predict_rows(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{str(k): str(v) for k, v in row.items()} for row in predict(pd.DataFrame(rows)).to_dict("records")]

    @app.get("/ping")
    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.post("/invocations")
    async def invocations(request: Request) -> JSONResponse:
        nonlocal waiting
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return error_response(415, "not JSON", "Content-Type", "application/json")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limits.request_bytes:
                return error_response(413, "the request is too large", "body", f"at most {limits.request_bytes} bytes")
        try:
            rows = parse_rows(bytes(body), limits)
        except BadInput as error:
            return error_response(400, error.what, error.where, error.remedy)
        if waiting >= limits.queue:
            return error_response(429, "too many requests at once", "queue", "retry later")
        waiting += 1
        future = asyncio.get_running_loop().run_in_executor(worker, predict_rows, rows)
        future.add_done_callback(lambda _: release())
        try:
            return JSONResponse({"predictions": await asyncio.wait_for(asyncio.shield(future), limits.seconds)})
        except TimeoutError:
            return error_response(504, "no answer in time", "model", f"{limits.seconds:.0f} s are allowed: send a smaller image")
        except MlflowException as error:
            status = error.get_http_status_code()
            return error_response(status if 400 <= status < 500 else 500, error.message, "request")
        except Exception as error:
            logger.error("a request failed: %s", type(error).__name__)  # the message may quote header values
            return error_response(500, "the model failed", "model", "the server's log names the exception")

    def release() -> None:
        nonlocal waiting
        waiting -= 1

    return app


def serve(model_uri: str, tracking_uri: str, host: str, port: int, limits: Limits) -> None:
    """Load a version and serve it until the process is terminated."""
    import mlflow
    import uvicorn

    mlflow.set_tracking_uri(tracking_uri)
    model = mlflow.pyfunc.load_model(model_uri, suppress_warnings=True)
    uvicorn.run(create_app(model.predict, limits), host=host, port=port, log_level="warning", timeout_keep_alive=30)
