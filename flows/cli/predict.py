"""``omnimri predict``: answer an instruction about images."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from components.errors import BadInput
from components.home import Home
from components.progress import hide_bars, show_status, step
from flows.cli import preflight
from flows.cli.options import JsonOption
from flows.cli.run_log import run_log

if TYPE_CHECKING:
    from components.inference import Prediction

app = typer.Typer()


class SamplerName(StrEnum):
    """Solvers of the image decoder's flow."""

    euler = "euler"
    heun = "heun"


@app.command(epilog='Example: omnimri predict t1.nii.gz "Segment the white matter in this brain MRI." -o out')
def predict(
    images: Annotated[
        list[Path], typer.Argument(help="NIfTI files, DICOM folders or fastMRI .h5 files; the last argument is the instruction")
    ],
    instruction: Annotated[str, typer.Argument(help="the instruction, in words")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for images and masks")] = Path("prediction"),
    model: Annotated[
        str, typer.Option(help="an MLflow model URI, or a folder saved with save_pretrained")
    ] = "models:/omnimri@staging",
    samples: Annotated[
        int, typer.Option(min=1, help="samples to average; from 2 on, uncertainty.nii is their standard deviation")
    ] = 1,
    steps: Annotated[int, typer.Option(min=1, help="flow steps of a sample; 1 gives the conditional mean")] = 1,
    sampler: Annotated[SamplerName, typer.Option(help="solver of the flow")] = SamplerName.euler,
    seed: Annotated[int, typer.Option(help="seed of the image sampler")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Answer an instruction about images: text on standard output, images and masks as NIfTI in the geometry of the input.

    For a DICOM series, masks are also written as DICOM Segmentation, and texts and boxes as DICOM Structured Report.
    """
    for image in images:
        if not image.exists():
            raise BadInput("no such file or folder", where=str(image), remedy="name a .nii.gz, a DICOM folder or an .h5")
    preflight.check_model(model)
    streamed: list[str] = []
    streams = len(images) == 1 and sys.stdout.isatty() and not as_json
    with run_log("predict") as output:
        from components.inference import Predictor, Sampling, resolve_model, save, save_dicom

        with step("load model") as loading:
            folder = resolve_model(model, Home.open().tracking_uri)
            predictor = Predictor.load(folder)
            loading.result = model
        sampling = Sampling(steps, sampler.value, samples, seed)

        def write(piece: str) -> None:
            hide_bars()
            streamed.append(piece)
            print(piece, end="", flush=True, file=output)

        def show_phase(phase: str, done: int, total: int) -> None:
            show_status(f"{phase} {done}/{total}")

        with step("predict") as predicting:
            if len(images) == 1:
                prediction = predictor.predict(images[0], instruction, sampling, write if streams else None, show_phase)
                predictions, folders = [prediction], [out]
                if streamed:
                    print(file=output)  # ends the streamed line before the step prints its own
            else:
                predictions = predictor.predict_many([(image, instruction) for image in images], sampling, show_phase)
                folders = [out / f"{number:03d}" for number in range(1, len(images) + 1)]
            predicting.result = ", ".join(prediction.task for prediction in predictions)
        files = [
            [*save(prediction, folder), *save_dicom(prediction, instruction, image, folder)]
            for prediction, image, folder in zip(predictions, images, folders, strict=True)
        ]
    _print_predictions(predictions, files, as_json, bool(streamed))


def _print_predictions(predictions: list[Prediction], files: list[list[Path]], as_json: bool, streamed: bool) -> None:
    """Print the answers and the files written for each of them."""
    from flows.cli.output import emit, relative

    if as_json:
        answers = [
            {"task": prediction.task, "text": prediction.text, "boxes": prediction.boxes, "files": paths}
            for prediction, paths in zip(predictions, files, strict=True)
        ]
        emit(answers[0] if len(answers) == 1 else {"answers": answers})
        return
    for prediction, paths in zip(predictions, files, strict=True):
        if not streamed:
            print(prediction.text)
        for path in paths:
            print(f"wrote {relative(path)}", file=sys.stderr)
