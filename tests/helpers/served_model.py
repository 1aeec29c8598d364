"""The HTTP application of a tiny model, as ``omnimri models serve`` makes it, and a server that runs it in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import uvicorn
from fastapi import FastAPI

from components.catalog import GeneratedSource
from components.inference import Predictor
from components.inference.prediction import nifti_bytes
from components.inference.untrusted_input import Limits
from components.registry.pyfunc_model import OmniMRIPyfunc
from components.samples.anatomies import ANATOMIES
from components.samples.dicom_series import DicomForm
from components.serving.answers import ServedModel
from components.serving.app import create_app
from components.tasks.scope import Scope
from tests.helpers.corpora import tiny_corpus, tiny_volume
from tests.helpers.trained import tiny_model


class Obedient(Predictor):
    """A predictor whose first answer has the form that the instruction asks for, as a trained model's has.

    The tiny model has random weights: it would choose one task for all questions. Everything after the form is computed by it.
    """

    slow = 0.0
    """Seconds between pieces of a report."""

    def _first_answers(self, questions: Any, progress: Any) -> list[str]:
        super()._first_answers(questions, progress)
        return [self._form(question.instruction) for question in questions]

    def _streamed_answer(self, question: Any, on_text: Any, progress: Any) -> str:
        answer = self._form(question.instruction)
        if answer != REPORT:
            return answer
        for word in REPORT.split(" "):
            time.sleep(self.slow)
            on_text(f"{word} ")
        return answer

    @staticmethod
    def _form(instruction: str) -> str:
        forms = {"segment": "<seg>", "reconstruct": "<image>", "find": "no lesion", "suggest": "no, no lesion"}
        return next((form for words, form in forms.items() if words in instruction.lower()), REPORT)


REPORT = "Modality: MRI. Sequence: T1-weighted. Plane: axial. Suggestive of: no lesion."


class Tiny:
    """A tiny model with a scope."""

    def __init__(self, root: Path) -> None:
        self.root = root
        corpus = tiny_corpus(root / "corpus")
        folder = tiny_model(root / "model", corpus)
        (root / "about").mkdir()
        Scope.from_corpus(corpus).write(root / "about")
        self.pyfunc = OmniMRIPyfunc()
        self.pyfunc.predictor = Obedient.load(folder)
        self.model = ServedModel.load(self.pyfunc.predictor, "omnimri version 1", folder)
        self.apps = 0

    def app(
        self, limits: Limits | None = None, predict: Callable[[pd.DataFrame], pd.DataFrame] | None = None, **options: Any
    ) -> FastAPI:
        """The application with a folder of its own."""
        self.apps += 1
        folder = self.root / f"kept-{self.apps}"
        folder.mkdir()
        return create_app(
            self.model, predict or (lambda rows: self.pyfunc.predict(None, rows)), folder, limits or Limits(), **options
        )


def small_study(folder: Path) -> dict[str, bytes]:
    """Files of a synthetic brain as an archive exports it: two DICOM series of 20 slices of 32 x 32 pixels, and a label map."""
    source, form = GeneratedSource(anatomy="brain", form="dicom", patients=1, pixels=32), DicomForm()
    folder.mkdir()
    form.write(ANATOMIES["brain"], form.generate(source, 0), folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def small_image(folder: Path, name: str) -> list[Path]:
    """A NIfTI file of 8 slices with its sidecar."""
    volume = tiny_volume(0, "T1-weighted", lesion=True)
    image, sidecar = folder / f"{name}_T1w.nii", folder / f"{name}_T1w.json"
    image.write_bytes(nifti_bytes(volume.voxels, volume.affine))
    sidecar.write_text(json.dumps({"PatientName": name, "BodyPartExamined": "BRAIN"}))
    return [image, sidecar]


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Run an application on a free port of loopback; yields its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)
