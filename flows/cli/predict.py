"""``omnimri predict``: answer an instruction about images."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from components.errors import BadInput
from components.home import Home
from components.progress import hide_bars, show_status, step
from components.settings import PacsSettings, load_settings
from flows.cli import preflight
from flows.cli.options import JsonOption, ProfileOption, SetOption
from flows.cli.run_log import run_log

if TYPE_CHECKING:
    from components.inference import Prediction
    from components.pacs.address import Server
    from components.pacs.results import Stored
    from components.pacs.study_address import StudyAddress
    from model_core.flow import Sampler

app = typer.Typer()


@app.command(epilog='Example: omnimri predict t1.nii.gz "Segment the white matter in this brain MRI." -o out')
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="NIfTI files, DICOM folders or fastMRI .h5 files, or one study on a server, dicomweb://NAME/studies/UID; "
            "the last argument is the instruction"
        ),
    ],
    instruction: Annotated[str, typer.Argument(help="the instruction, in words")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for images and masks")] = Path("prediction"),
    model: Annotated[
        str, typer.Option(help="an MLflow model URI, or a folder saved with save_pretrained")
    ] = "models:/omnimri@staging",
    samples: Annotated[
        int,
        typer.Option(
            min=1, help="samples to average; from 2 on, uncertainty.nii is their standard deviation (needs --steps 2 or more)"
        ),
    ] = 1,
    steps: Annotated[int, typer.Option(min=1, help="flow steps of a sample; 1 gives the conditional mean")] = 1,
    sampler: Annotated[Literal["euler", "heun"], typer.Option(help="solver of the flow")] = "euler",
    seed: Annotated[int, typer.Option(help="seed of the image sampler")] = 0,
    store: Annotated[
        bool, typer.Option("--store", help="store the DICOM results on the server of the study, or on that of --to, each once")
    ] = False,
    study: Annotated[
        bool, typer.Option("--study", help="all images are one examination: answer about them together, as whole volumes")
    ] = False,
    to: Annotated[str | None, typer.Option(help="server of the profile (pacs.servers) to store on")] = None,
    profile: ProfileOption = "demo",
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer an instruction about images: text on standard output, images and masks as NIfTI in the geometry of the input.

    With --study, a folder may hold a DICOM study or a BIDS session; the model must have been trained with volumes.
    For DICOM series, masks are also written as DICOM Segmentation, and texts and boxes as DICOM Structured Reports.
    """
    pacs = load_settings(profile, overrides).pacs
    address = _find_address(images)
    destination = _find_destination(address, store, to, pacs)
    if address is None:
        for image in images:
            if not Path(image).exists():
                raise BadInput("no such file or folder", where=image, remedy="name a .nii.gz, a DICOM folder or an .h5")
    preflight.check_model(model)
    sampling = (steps, sampler, samples, seed)
    streamed: list[str] = []
    stored = None
    with run_log("predict") as output, ExitStack() as stack:
        paths = [Path(image) for image in images] if address is None else _fetch(address, pacs, stack)
        streams = len(paths) == 1 and not study and sys.stdout.isatty() and not as_json
        answered = [paths] if study else [[path] for path in paths]
        predictions, folders = _predict(answered, instruction, model, sampling, out, streamed if streams else None, output, study)
        images_of: list[Path | None] = [None] if study else [*paths]
        files = [_save(*results, instruction) for results in zip(predictions, images_of, folders, strict=True)]
        if destination is not None:
            stored = _store(destination, [path for paths in files for path in paths if path.suffix == ".dcm"], pacs)
    _print_predictions(predictions, files, as_json, "".join(streamed), stored)


def _find_address(images: list[str]) -> StudyAddress | None:
    """Return the study that the inputs name; None for files.

    Raises:
        BadInput: a malformed address, or one beside other inputs.
    """
    from components.pacs.study_address import StudyAddress, is_study_address

    if not any(is_study_address(image) for image in images):
        return None
    if len(images) > 1:
        raise BadInput("a study on a server beside other images", where="IMAGES", remedy="name the study alone")
    return StudyAddress.parse(images[0])


def _find_destination(address: StudyAddress | None, store: bool, to: str | None, pacs: PacsSettings) -> Server | None:
    """Return the server to store on; None if nothing is stored.

    Raises:
        BadInput: the user names no destination, or one that the profile does not know.
    """
    from components.pacs.address import find_server

    if address is not None:
        find_server(address.server, pacs)
    if not store:
        if to is not None:
            raise BadInput("a destination without --store", where="--to", remedy="add --store")
        return None
    name = to if to is not None else address.server if address is not None else None
    if name is None or name not in pacs.servers:
        known = ", ".join(sorted(pacs.servers)) or "none"
        remedy = f"name one of pacs.servers of the profile ({known}): --store --to NAME"
        raise BadInput("results are stored on a named server only", where="--store", remedy=remedy)
    return find_server(name, pacs)


def _fetch(address: StudyAddress, pacs: PacsSettings, stack: ExitStack) -> list[Path]:
    """Return the folders of the MR series of a study that can be read as volumes; the stack removes them."""
    from components.ingestion import read_path
    from components.pacs.address import find_server
    from components.pacs.archive import open_archive
    from components.pacs.images import fetched_images
    from flows.pacs_credentials import find_credentials

    server = find_server(address.server, pacs)
    with step(f"fetch from {server.label}") as fetching:
        images = stack.enter_context(fetched_images(address, open_archive(server, find_credentials), Home.open(), pacs.patience_s))
        readable, reasons = [], list(images.left_out)
        for folder in images.folders:
            try:
                read_path(folder)
                readable.append(folder)
            except BadInput as error:
                reasons.append(error.what)
        fetching.result = f"{len(readable)} series"
    for reason in reasons:
        print(f"a series is left out: {reason}", file=sys.stderr)
    if not readable:
        raise BadInput("no series of the study can be read as a volume", where=server.label, remedy="name one: .../series/UID")
    return readable


def _predict(
    answered: list[list[Path]],
    instruction: str,
    model: str,
    sampling_options: tuple[int, Sampler, int, int],
    out: Path,
    streamed: list[str] | None,
    output: TextIO,
    study: bool,
) -> tuple[list[Prediction], list[Path]]:
    """Return the answers about images, and the folder for each.

    Args:
        answered: the images of each answer: one, or those of a study.
        study: the images of the answer are whole volumes of one examination.
        sampling_options: fields of :class:`components.inference.Sampling`.
        streamed: receives the pieces of the text, which are printed to ``output`` as they come; None = nothing is printed.
    """
    from components.inference import Predictor, Sampling, resolve_model

    sampling = Sampling(*sampling_options)
    with step("load model") as loading:
        predictor = Predictor.load(resolve_model(model, Home.open().tracking_uri))
        loading.result = model

    def write(piece: str) -> None:
        hide_bars()
        assert streamed is not None
        streamed.append(piece)
        print(piece, end="", flush=True, file=output)

    def show_phase(phase: str, done: int, total: int) -> None:
        show_status(f"{phase} {done}/{total}")

    with step("predict") as predicting:
        if study:
            predictions, folders = [predictor.predict_study(answered[0], instruction, sampling, show_phase)], [out]
        elif len(answered) == 1:
            on_text = write if streamed is not None else None
            predictions, folders = [predictor.predict(answered[0][0], instruction, sampling, on_text, show_phase)], [out]
            if streamed:
                print(file=output)  # ends the streamed line before the step prints its own
        else:
            predictions = predictor.predict_many([(path, instruction) for [path] in answered], sampling, show_phase)
            folders = [out / f"{number:03d}" for number in range(1, len(answered) + 1)]
        predicting.result = ", ".join(prediction.task for prediction in predictions)
    return predictions, folders


def _save(prediction: Prediction, image: Path | None, folder: Path, instruction: str) -> list[Path]:
    """Write the files of an answer, in DICOM as well if the image, or the series of the study (None), is DICOM."""
    from components.inference import save, save_dicom

    return [*save(prediction, folder), *save_dicom(prediction, instruction, image, folder)]


def _store(server: Server, files: list[Path], pacs: PacsSettings) -> Stored:
    """Store results on a server.

    Raises:
        BadInput: there is no DICOM result.
    """
    from components.pacs.archive import open_archive
    from components.pacs.results import store_results
    from flows.pacs_credentials import find_credentials

    if not files:
        remedy = "only masks, texts and boxes about DICOM images have a DICOM form; the files in the output folder are complete"
        raise BadInput("nothing to store", where="--store", remedy=remedy)
    with step(f"store on {server.label}") as storing:
        stored = store_results(files, open_archive(server, find_credentials), Home.open(), pacs.patience_s)
        storing.result = f"{stored.sent} objects sent, {stored.present} there before"
    return stored


def _print_predictions(
    predictions: list[Prediction], files: list[list[Path]], as_json: bool, streamed: str, stored: Stored | None
) -> None:
    """Print the answers, the files written for each of them, and how many were stored.

    What was shown while the network wrote it is repeated if the facts of the header and of the masks changed it.
    """
    from flows.cli.output import emit, relative

    if as_json:
        answers = [
            {"task": prediction.task, "text": prediction.text, "boxes": prediction.boxes, "files": paths}
            | ({"volume_boxes": prediction.volume_boxes} if prediction.volume_boxes else {})
            | ({"familiarity": prediction.familiarity} if prediction.familiarity is not None else {})
            for prediction, paths in zip(predictions, files, strict=True)
        ]
        answer = answers[0] if len(answers) == 1 else {"answers": answers}
        emit(answer if stored is None else {**answer, "stored": {"sent": stored.sent, "present": stored.present}})
        return
    for prediction, paths in zip(predictions, files, strict=True):
        if prediction.text != streamed.strip():
            if streamed:
                print("the same with the facts of the header and of the masks, as in the files:", file=sys.stderr)
            print(prediction.text)
        if prediction.familiarity is not None and prediction.familiarity.is_unlike:
            print(f"warning: {prediction.familiarity.warning}", file=sys.stderr)
        for path in paths:
            print(f"wrote {relative(path)}", file=sys.stderr)
    if stored is not None:
        print(f"stored: {stored.sent} objects sent, {stored.present} there before", file=sys.stderr)
