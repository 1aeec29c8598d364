"""HTTP application of a model: MLflow's ``/invocations``, the page at ``/``, and the interface that the page uses.

Every route has the same limits: the size of a body is checked while it is received (413), its content before the model is called
(400, 415, 422). One request is computed at a time: after a short queue, 429; after the time limit, 504. Errors state fault, place
and remedy; they never contain a file name or a header value.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from components.errors import BadInput, OmniMRIError
from components.evaluation.report_page import NIIVUE
from components.inference.untrusted_input import Limits
from components.serving.answers import Answer, ServedModel, compute_answer, require_answerable
from components.serving.guards import Guards, error_body
from components.serving.invocations import body_schema, parse_rows
from components.serving.kept import Kept, NotKept
from components.serving.samples import NoSuchSample, generate_sample, list_samples
from components.serving.uploads import UploadedImage, receive
from components.serving.worker import Cancelled, QueueFull, Stop, TooSlow, Worker

PAGE = Path(__file__).with_name("page")
PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "viewer.js": "text/javascript", "niivue.js": "text/javascript"}
MEDIA_TYPES = {".nii": "application/octet-stream", ".dcm": "application/dicom", ".json": "application/json", ".png": "image/png"}
STATUS: dict[type[OmniMRIError], int] = {NotKept: 404, NoSuchSample: 404, QueueFull: 429, TooSlow: 504}
REMOVE_EVERY_SECONDS = 60.0
"""Interval at which a server removes what it has kept for too long."""
DEFAULT_LIMITS = Limits()
logger = logging.getLogger(__name__)


class ErrorFacts(BaseModel):
    """Fault, place and remedy."""

    what: str
    where: str
    remedy: str


class ErrorBody(BaseModel):
    """Body of every error."""

    error: ErrorFacts


class ImageBody(BaseModel):
    """An uploaded image; nothing in the description identifies a patient."""

    id: str
    description: str
    shape: list[int] = Field(description="slices, rows, columns")
    plane: Literal["axial", "coronal", "sagittal"] = Field(description="plane of the slices")
    flipped: bool = Field(description="the slices run to the left, back or feet")

    @classmethod
    def of(cls, key: str, image: UploadedImage) -> ImageBody:
        """Return the body of a kept image."""
        plane, flipped = image.orientation
        return cls(id=key, description=image.description, shape=list(image.shape), plane=plane, flipped=flipped)


class UploadBody(BaseModel):
    """The images of an upload."""

    images: list[ImageBody]
    left_out: list[str] = Field(description="a reason for each file or series that is no image")


class QuestionBody(BaseModel):
    """A question about one image, or about several as one study."""

    model_config = ConfigDict(extra="forbid")

    images: list[str] = Field(min_length=1, max_length=8, description="ids of uploaded images")
    instruction: str


class ModelBody(BaseModel):
    """The served model: what can be asked, and the samples."""

    title: str
    scope: dict[str, Any] | None
    examples: dict[str, list[str]] = Field(description="task -> questions of the training data")
    samples: dict[str, str] = Field(description="name -> description")
    limits: dict[str, float]


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        400: "the input is wrong, or outside of the model's scope",
        401: "no token, or a wrong one",
        403: "a page of another site",
        404: "no such object",
        413: "the body is too large",
        415: "another content type",
        421: "not a name of this server",
        422: "another structure",
        429: "too many requests",
        500: "a fault of the server",
        504: "no answer in time",
    }.items()
}


def error_response(error: Exception) -> JSONResponse:
    """Return the response to an exception; messages of libraries are not passed on, because they may quote header values."""
    if isinstance(error, HTTPException):
        facts = error.detail if isinstance(error.detail, dict) else {"what": str(error.detail), "where": "request", "remedy": ""}
        return JSONResponse({"error": facts}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) if error.errors() else "request"
        return JSONResponse(error_body("not as /openapi.json describes", where, "compare with /openapi.json"), 422)
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return JSONResponse(error_body(error.message, "request"), status if 400 <= status < 500 else 500)
    if isinstance(error, OmniMRIError):
        status = STATUS.get(type(error), 400 if isinstance(error, BadInput) else 500)
        return JSONResponse(error_body(error.what, error.where, error.remedy), status)
    logger.error("a request failed: %s", type(error).__name__)
    return JSONResponse(error_body("the server failed", "server", "its log names the exception"), 500)


class Service:
    """The routes of a served model.

    Attributes:
        predict: maps rows of ``image`` and ``instruction`` to output rows; an MLflow exception with a 4xx status is passed on.
    """

    def __init__(self, model: ServedModel, predict: Callable[[pd.DataFrame], pd.DataFrame], root: Path, limits: Limits) -> None:
        self.model, self.predict, self.limits = model, predict, limits
        self.kept, self.worker = Kept(root, limits), Worker(limits)

    async def invocations(self, request: Request) -> JSONResponse:
        """Answer rows of image and instruction, as MLflow defines it."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return JSONResponse(error_body("not JSON", "Content-Type", "application/json"), 415)
        rows = parse_rows(await request.body(), self.limits)

        def predict_rows(stop: Stop) -> list[dict[str, str]]:
            return [{str(k): str(v) for k, v in row.items()} for row in self.predict(pd.DataFrame(rows)).to_dict("records")]

        return JSONResponse({"predictions": await self.worker.run(predict_rows)})

    async def describe(self) -> ModelBody:
        """Describe the model: what can be asked, samples, limits."""
        scope = self.model.predictor.scope
        names = ("tasks", "anatomies", "sequences", "structure_names", "finding_names")
        return ModelBody(
            title=self.model.title,
            scope=None if scope is None else {name: list(getattr(scope, name)) for name in names},
            examples={} if scope is None else {task: list(asked) for task, asked in scope.examples.items()},
            samples=list_samples(scope),
            limits={"request_bytes": self.limits.request_bytes, "seconds": self.limits.seconds, "images": self.limits.images},
        )

    async def upload(self, request: Request) -> UploadBody:
        """Receive the files of one or more images (form field ``files``): NIfTI, DICOM, zip, k-space."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPException(415, error_body("not a form", "Content-Type", "multipart/form-data")["error"])  # type: ignore[arg-type]
        self.worker.require_place()
        async with request.form(max_files=self.limits.files, max_fields=8) as form:
            files = [(str(one.filename or ""), one.file) for one in form.getlist("files") if not isinstance(one, str)]
            if not files:
                raise BadInput("no files", where="files", remedy="send at least one file")
            return await self._keep_images(lambda: files)

    async def use_sample(self, name: str) -> UploadBody:
        """Use a sample as if it had been uploaded."""
        scope = self.model.predictor.scope
        if name not in list_samples(scope):
            raise NoSuchSample("no such sample", where="sample", remedy="/api/model lists them")
        return await self._keep_images(lambda: generate_sample(name, scope))

    async def _keep_images(self, files: Callable[[], Any]) -> UploadBody:
        def keep(stop: Stop) -> UploadBody:
            images, reasons, folder = receive(self.kept, files(), self.limits)
            ids = self.kept.add(images, folder)
            try:
                stop.check()
            except Cancelled:  # nobody learns the ids
                for key in ids:
                    self.kept.remove(key)
                raise
            return UploadBody(images=list(map(ImageBody.of, ids, images)), left_out=reasons)

        return await self.worker.run(keep)

    async def remove_old(self) -> None:
        """Remove what is kept for too long, for as long as the server runs: also while nobody asks anything."""
        while True:
            await asyncio.sleep(min(self.limits.kept_seconds, REMOVE_EVERY_SECONDS))
            await asyncio.to_thread(self.kept.remove_old)

    async def image_volume(self, image: str) -> FileResponse:
        """Return the voxels of an image as the model receives it, as NIfTI."""
        return FileResponse(self.kept.get(image, UploadedImage).view, media_type=MEDIA_TYPES[".nii"])

    async def remove_image(self, image: str) -> Response:
        """Remove an image from the server."""
        self.kept.remove(image)
        return Response(status_code=204)

    async def answer(self, question: QuestionBody) -> StreamingResponse:
        """Answer a question; one JSON object a line: progress, text, and at the end the answer or an error.

        A client that closes the connection cancels the answer.
        """
        images = [self.kept.get(key, UploadedImage) for key in question.images]
        require_answerable(question.instruction, self.model, self.limits)
        self.worker.require_place()
        return StreamingResponse(self._events(images, question.instruction), media_type="application/x-ndjson")

    async def _events(self, images: list[UploadedImage], instruction: str) -> AsyncIterator[bytes]:
        loop, events = asyncio.get_running_loop(), asyncio.Queue[dict[str, Any] | None]()
        before = self.worker.waiting

        def emit(event: dict[str, Any]) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def compute(stop: Stop) -> dict[str, Any]:
            folder = self.kept.create_folder()
            try:
                answer = compute_answer(self.model, images, instruction, folder, emit, stop)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            [key] = self.kept.add([answer], folder)
            return {"event": "answer", "id": key, **answer.content}

        task = asyncio.ensure_future(self.worker.run(compute))
        task.add_done_callback(lambda _: events.put_nowait(None))
        try:
            yield _line({"event": "progress", "phase": "waiting", "done": 0, "total": before})
            while (event := await events.get()) is not None:
                yield _line(event)
            yield _line(self._last_event(task))
        finally:
            task.cancel()

    def _last_event(self, task: asyncio.Task[dict[str, Any]]) -> dict[str, Any]:
        try:
            return task.result()
        except (asyncio.CancelledError, Cancelled):
            return {"event": "error", "status": 499, **error_body("cancelled", "answer", "ask again")}
        except Exception as error:
            response = error_response(error)
            return {"event": "error", "status": response.status_code, **json.loads(bytes(response.body))}

    async def answer_file(self, answer: str, name: str) -> FileResponse:
        """Return a file of an answer: NIfTI, DICOM Segmentation or Structured Report, JSON, picture."""
        found = self.kept.get(answer, Answer)
        if name not in found.content["files"]:
            raise NotKept("no such file of this answer", where="file", remedy=f"one of {', '.join(found.content['files'])}")
        return FileResponse(found.folder / name, media_type=MEDIA_TYPES[Path(name).suffix], filename=name)


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


async def page() -> FileResponse:
    """Return the page."""
    return FileResponse(PAGE / "index.html", media_type="text/html")


async def page_file(name: str) -> FileResponse:
    """Return a file of the page."""
    if name not in PAGE_FILES:
        raise NotKept("no such file", where="page", remedy="open /")
    path = NIIVUE if name == "niivue.js" else PAGE / name
    return FileResponse(path, media_type=PAGE_FILES[name], headers={"cache-control": "max-age=3600"} if path == NIIVUE else None)


async def health() -> JSONResponse:
    """State that the server answers."""
    return JSONResponse({"status": "ok"})


def create_app(
    model: ServedModel,
    predict: Callable[[pd.DataFrame], pd.DataFrame],
    root: Path,
    limits: Limits = DEFAULT_LIMITS,
    token: str | None = None,
    hosts: tuple[str, ...] | None = None,
) -> FastAPI:
    """Return the HTTP application of a model.

    Args:
        predict: maps rows of ``image`` and ``instruction`` to output rows.
        root: empty folder for uploads and answers.
        token, hosts: see :class:`components.serving.guards.Guards`.
    """
    service = Service(model, predict, root, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        removal = asyncio.create_task(service.remove_old())
        yield
        removal.cancel()
        service.worker.shutdown()

    app = FastAPI(title="OmniMRI", version="1", docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS)
    for error in (HTTPException, RequestValidationError, OmniMRIError, MlflowException, Exception):
        app.add_exception_handler(error, _handle)
    app.add_middleware(Guards, request_bytes=limits.request_bytes, token=token, hosts=hosts)
    rows = {"requestBody": {"required": True, "content": {"application/json": {"schema": body_schema(limits)}}}}
    binary = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    form = {"type": "object", "properties": {"files": binary}, "required": ["files"]}
    files = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
    app.add_api_route("/", page, include_in_schema=False)
    app.add_api_route("/page/{name}", page_file, include_in_schema=False)
    app.add_api_route("/ping", health)
    app.add_api_route("/health", health)
    app.add_api_route("/invocations", service.invocations, methods=["POST"], openapi_extra=rows)
    app.add_api_route("/api/model", service.describe)
    app.add_api_route("/api/images", service.upload, methods=["POST"], openapi_extra=files)
    app.add_api_route("/api/samples/{name}", service.use_sample, methods=["POST"])
    app.add_api_route("/api/images/{image}", service.remove_image, methods=["DELETE"], status_code=204)
    app.add_api_route("/api/images/{image}/view.nii", service.image_volume)
    app.add_api_route("/api/answers", service.answer, methods=["POST"])
    app.add_api_route("/api/answers/{answer}/{name}", service.answer_file)
    return app


async def _handle(_: Request, error: Exception) -> Response:
    return error_response(error)
