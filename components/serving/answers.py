"""Answers for the page: events while an answer is computed, and the files of its result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.curation.text.template import parse_paragraph
from components.errors import BadInput
from components.files import atomic_file, read_json
from components.inference import Prediction, save, save_dicom
from components.inference.prediction import nifti_bytes
from components.inference.predictor import ABOUT, Predictor
from components.inference.question import CONDITIONAL_MEAN
from components.inference.untrusted_input import Limits
from components.serving.uploads import UploadedImage
from components.serving.worker import Stop
from components.tasks.calibration import CALIBRATION

BOXES = "boxes.nii"
"""Outlines of the boxes as a label volume, for the viewer."""
Emit = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class ServedModel:
    """A model with the facts of its registration.

    Attributes:
        title: name and version.
        statement: what a probability of this version means, as measured.
    """

    predictor: Predictor
    title: str
    statement: str

    @classmethod
    def load(cls, predictor: Predictor, title: str, model_dir: Path) -> ServedModel:
        """Return the model with the statement that its evaluation supports."""
        return cls(predictor, title, calibration_statement(model_dir.parent / ABOUT))


@dataclass(frozen=True)
class Answer:
    """A computed answer: the folder with its files, and its content for the page."""

    folder: Path
    content: dict[str, Any]


def calibration_statement(about: Path) -> str:
    """Return what a probability means, from the evaluation that is stored with a version."""
    if not (about / CALIBRATION).is_file():
        return "Not calibrated: read it as a score, not as a frequency."
    rows = read_json(about / "evaluation.json") if (about / "evaluation.json").is_file() else []
    row = next((row for row in rows if row["task"] == "diagnosis" and row["metric"] == "ECE"), None)
    text = "Calibrated on validation patients"
    if row is None:
        return f"{text}."
    return (
        f"{text}. On {row['cases']} cases of {row['patients']} test patients, stated and observed frequencies differed by "
        f"{row['model']:.2f} on average (expected calibration error)."
    )


def require_answerable(instruction: str, model: ServedModel, limits: Limits) -> None:
    """Check what can be checked of a question before it waits for its turn.

    Raises:
        BadInput: an empty or very long instruction, or one out of scope.
    """
    if len(instruction) > limits.instruction_characters:
        remedy = f"at most {limits.instruction_characters} characters"
        raise BadInput("the instruction is too long", where="instruction", remedy=remedy)
    model.predictor.require_question(instruction)


def compute_answer(
    model: ServedModel, images: Sequence[UploadedImage], instruction: str, folder: Path, emit: Emit, stop: Stop
) -> Answer:
    """Answer an instruction about one image, or about several as one study, and write the files.

    Args:
        folder: receives the files.
        emit: called with each event (``progress``, ``text``).
        stop: checked between steps.
    """

    def progress(phase: str, done: int, total: int) -> None:
        stop.check()
        emit({"event": "progress", "phase": phase, "done": done, "total": total})

    def on_text(piece: str) -> None:
        stop.check()
        emit({"event": "text", "text": piece})

    emit({"event": "progress", "phase": "reading", "done": 0, "total": 1})
    if len(images) == 1:
        prediction = model.predictor.predict(images[0].path, instruction, CONDITIONAL_MEAN, on_text, progress)
    else:
        prediction = model.predictor.predict_study([image.path for image in images], instruction, CONDITIONAL_MEAN, progress)
    stop.check()
    target = find_target(prediction, images)
    files = save(prediction, folder)
    dicom, without_dicom = _dicom_files(prediction, instruction, images[0].path if len(images) == 1 else None, folder)
    files += dicom
    if prediction.boxes:
        files.append(_save_boxes(prediction, images[target].shape, folder / BOXES))
    return Answer(folder, {**_content(prediction, model, target, files), "without_dicom": without_dicom})


def find_target(prediction: Prediction, images: Sequence[UploadedImage]) -> int:
    """Return the index of the image whose grid the prediction has; of several, the first."""
    affine = np.asarray(prediction.affine).ravel()
    matching = (index for index, image in enumerate(images) if np.allclose(image.affine, affine, atol=1e-3))
    return next(matching, 0)


def _dicom_files(prediction: Prediction, instruction: str, source: Path | None, folder: Path) -> tuple[list[Path], str]:
    """Write the DICOM form of an answer; return the files, and why there are none if the headers lack what they must repeat."""
    try:
        return save_dicom(prediction, instruction, source, folder), ""
    except BadInput as error:
        return [], f"{error.what}: {error.remedy}"


def _save_boxes(prediction: Prediction, shape: tuple[int, int, int], path: Path) -> Path:
    """Write the outlines of the boxes, (D, H, W) uint8, as NIfTI."""
    outlines: NDArray[np.uint8] = np.zeros(shape, np.uint8)
    for box in prediction.boxes:
        plane = outlines[box.slice_index, box.row0 : box.row1, box.col0 : box.col1]
        plane[[0, -1], :] = 1
        plane[:, [0, -1]] = 1
    with atomic_file(path) as temporary:
        temporary.write_bytes(nifti_bytes(outlines, prediction.affine))
    return path


def _content(prediction: Prediction, model: ServedModel, target: int, files: Sequence[Path]) -> dict[str, Any]:
    fields = parse_paragraph(prediction.text) if prediction.task == "report" else {}
    return {
        "task": prediction.task,
        "text": prediction.text,
        "fields": {name.partition(".")[2].replace("_", " "): text for name, text in fields.items() if text},
        "probability": prediction.probability,
        "statement": model.statement if prediction.probability is not None else "",
        "boxes": [asdict(box) for box in prediction.boxes],
        "warning": prediction.familiarity.warning if prediction.familiarity is not None else "",
        "image": target,
        "slices": list(prediction.slices),
        "files": [path.name for path in files],
    }
