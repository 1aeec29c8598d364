"""One model, ready to answer.

The model itself decides the task: its answer begins with ``<image>`` (reconstruction) or ``<seg>`` (segmentation), holds ``<bbox>``
or "no lesion" (detection), or begins with yes or no (diagnosis); anything else is a report. The question is asked about the middle
slice first; then, for images, masks and boxes, about every slice, and for a diagnosis about slices through the whole volume.

Shape letters: K draws, D slices, H rows, W columns, V views, M side of a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import TextIteratorStreamer

from components.errors import BadInput
from components.files import read_json
from components.inference.model_uri import PREPROCESSING
from components.inference.prediction import FoundBox, Prediction
from components.inference.sliding_window import Planes, View, batches_of_slices
from components.ingestion.volume import Volume
from components.provenance import digest
from components.settings import TaskName
from model_core import OmniMRIForConditionalGeneration
from model_core.batch import TARGET_IMAGE, TARGET_MASK
from model_core.boxes import BOX_TOKEN, NO_LESION, parse_boxes
from model_core.flow import SAMPLERS, Sampler
from model_core.mri_physics.sense import consistent
from model_core.processing import Processor
from model_core.tokenization import IMAGE, SEG

BATCH, DIAGNOSIS_SLICES, LONGEST_ANSWER = 8, 12, 200
SAME_BOX = 0.5
"""Overlap (intersection over union) from which boxes of neighbouring views are one finding."""


def task_of(answer: str) -> TaskName:
    """The task that an answer's form belongs to."""
    if answer.startswith(IMAGE):
        return "reconstruction"
    if answer.startswith(SEG):
        return "segmentation"
    if BOX_TOKEN in answer or answer.startswith(NO_LESION):
        return "detection"
    return "diagnosis" if answer.lower().startswith(("yes", "no,", "no ")) or answer.lower() == "no" else "report"


@dataclass(frozen=True)
class Sampling:
    """How images and masks are made.

    Attributes:
        steps: of a draw; one step gives the conditional mean, which has the least squared error.
        sampler: ``euler`` or ``heun`` (twice the work a step, an error that falls with the square of the step).
        samples: draws; the answer is their mean, and from two on their deviation is the uncertainty.
        seed: the same seed gives the same answer.
    """

    steps: int = 1
    sampler: Sampler = "euler"
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.samples < 1 or self.sampler not in SAMPLERS:
            raise BadInput(
                "nothing to sample",
                where=f"{self.samples} samples of {self.steps} steps by {self.sampler}",
                remedy=f"at least one sample of one step, by {' or '.join(SAMPLERS)}",
            )


@dataclass(frozen=True)
class _Question:
    """An instruction about a volume."""

    planes: Planes
    instruction: str
    file_affine: NDArray[np.float64] | None

    @property
    def first(self) -> View:
        """What the question is asked about first."""
        content = self.planes.content
        return self.planes.richest(content[len(content) // 2])

    def said(self, task: TaskName, text: str, views: Sequence[View], **parts: Any) -> Prediction:
        """The answer."""
        planes, middle = self.planes, views[len(views) // 2]
        slices = tuple(dict.fromkeys(view.index for view in views))
        affine = np.asarray(planes.volume.affine)
        return Prediction(task, text, slices, affine, planes.seen(middle), file_affine=self.file_affine, **parts)


@dataclass
class Predictor:
    """A model with its processor and the grid that it was trained on.

    Attributes:
        matrix: pixels of a side; pixel_mm: their size.
    """

    model: OmniMRIForConditionalGeneration
    processor: Processor
    matrix: int
    pixel_mm: float

    @classmethod
    def load(cls, folder: str | Path) -> Predictor:
        """Load a saved model.

        Raises:
            BadInput: the folder lacks a part of it.
        """
        path = Path(folder)
        if not (path / PREPROCESSING).is_file():
            raise BadInput(
                f"no {PREPROCESSING}", where=str(path), remedy="name the model folder of a trained stage or of the registry"
            )
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        grid = read_json(path / PREPROCESSING)
        model = OmniMRIForConditionalGeneration.from_pretrained(path).eval()
        return cls(model, Processor.from_pretrained(path), int(grid["matrix"]), float(grid["pixel_mm"]))

    def predict(
        self, source: Path | Volume, instruction: str, sampling: Sampling = Sampling(), say: Callable[[str], None] | None = None
    ) -> Prediction:
        """Answer an instruction about one volume.

        Args:
            source: a volume, or the path of a file or of a DICOM series' folder.
            say: called with the pieces of a report while it is written.

        Raises:
            BadInput: an empty instruction, or a file that cannot be read.
        """
        question = self._question(source, instruction)
        pieces: list[str] = []
        for piece in self._written(question) if say else self._texts([(question, question.first)]):
            pieces.append(piece)
            if say and task_of("".join(pieces).lstrip()) == "report":
                say(piece)
        return self._answered(question, "".join(pieces).strip(), sampling)

    def predict_many(self, requests: Sequence[tuple[Path | Volume, str]], sampling: Sampling = Sampling()) -> list[Prediction]:
        """Answer several (source, instruction) requests, text in batches; the answers are those of :meth:`predict`."""
        questions = [self._question(source, instruction) for source, instruction in requests]
        answers = self._texts([(question, question.first) for question in questions])
        return [self._answered(question, answer, sampling) for question, answer in zip(questions, answers, strict=True)]

    def stream(self, source: Path | Volume, instruction: str) -> Iterator[str]:
        """The text about the middle slice, in pieces of a word or so, while it is written."""
        yield from self._written(self._question(source, instruction))

    def _question(self, source: Path | Volume, instruction: str) -> _Question:
        if not instruction.strip():
            raise BadInput("an empty instruction", where="instruction", remedy='e.g. "Segment the white matter in this brain MRI."')
        volume, file_affine = (source, None) if isinstance(source, Volume) else _read(source)
        return _Question(Planes.of(volume, self.matrix, self.pixel_mm), instruction, file_affine)

    def _answered(self, question: _Question, answer: str, sampling: Sampling) -> Prediction:
        task = task_of(answer)
        if task in ("reconstruction", "segmentation"):
            return self._decoded(question, task, answer, sampling)
        if task == "detection":
            return self._detected(question)
        if task == "diagnosis":
            return self._diagnosed(question)
        return question.said(task, answer, [question.first])

    @property
    def _tokens(self) -> int:
        return self.model.image_tokens_for(1, self.matrix, self.matrix)

    def _prompts(self, asked: Sequence[tuple[_Question, View]]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and pixels of some questions, ready for generation."""
        prompts = [self.processor.encode(question.instruction, None, self._tokens).input_ids for question, _ in asked]
        ids, mask = self.processor.pad(prompts, left=True)
        return ids, mask, _pixels([question.planes.seen(view) for question, view in asked])

    def _texts(self, asked: Sequence[tuple[_Question, View]]) -> list[str]:
        answers: list[str] = []
        for part in _batches(asked):
            ids, mask, pixels = self._prompts(part)
            answers += [self.processor.decode(made) for made in self.model.generate_text(ids, mask, pixels, LONGEST_ANSWER)]
        return answers

    def _written(self, question: _Question) -> Iterator[str]:
        """The answer about the first view, piece by piece; generation runs in a thread of its own."""
        ids, mask, pixels = self._prompts([(question, question.first)])
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=False)
        failures: list[BaseException] = []

        def write() -> None:
            try:
                self.model.generate_text(ids, mask, pixels, LONGEST_ANSWER, streamer=streamer)
            except BaseException as failure:
                failures.append(failure)
                streamer.end()

        thread = Thread(target=write, daemon=True)
        thread.start()
        for piece in streamer:
            if text := piece.replace(self.processor.tokenizer.eos_token, ""):
                yield text
        thread.join()
        if failures:
            raise failures[0]

    def _decoded(self, question: _Question, task: TaskName, answer: str, sampling: Sampling) -> Prediction:
        """Every slice through the image decoder."""
        planes, depth = question.planes, len(question.planes.voxels)
        marker, kind = (IMAGE, TARGET_IMAGE) if task == "reconstruction" else (SEG, TARGET_MASK)
        prompt = self.processor.encode_answer_prefix(question.instruction, marker, self._tokens)
        views = planes.views(range(depth))
        made: list[NDArray[np.float32]] = []
        for part in _batches(views):
            ids, mask = self.processor.pad([prompt] * len(part))
            draws_KB1DMM = self.model.generate_images(
                ids,
                mask,
                _pixels([planes.seen(view) for view in part]),
                torch.full((len(part),), kind),
                planes.measured_of(part),
                seeds=[int(digest(sampling.seed, view.index, view.row, view.column)[:12], 16) for view in part],
                steps=sampling.steps,
                sampler=sampling.sampler,
                draws=sampling.samples,
            )
            made.extend(draws_KB1DMM[:, :, 0, 0].transpose(0, 1).numpy())
        text = answer.removeprefix(marker).strip() or f"{task} of {depth} slices"
        if task == "segmentation":
            draws = np.stack([planes.on_source(draw) for draw in planes.blended(views, np.stack(made))])
            return question.said(task, text, views, mask=(draws.mean(0) > 0.5).astype(np.uint8), uncertainty=_deviation(draws))
        changes = planes.blended(views, np.stack([one - planes.seen(view) for one, view in zip(made, views, strict=True)]))
        draws = planes.scale * np.stack([_changed(planes, change) for change in changes])
        return question.said(task, text, views, image=draws.mean(0), uncertainty=_deviation(draws))

    def _detected(self, question: _Question) -> Prediction:
        """Boxes on every slice that shows something."""
        planes = question.planes
        views = planes.views(planes.content)
        found: list[FoundBox] = []
        for view, text in zip(views, self._texts([(question, view) for view in views]), strict=True):
            for box in parse_boxes(text):
                row0, col0, row1, col1 = planes.box_on_source(view, box)
                if row0 < row1 and col0 < col1:  # a thin box may vanish between two pixels of a coarser image
                    found.append(FoundBox(box.label, view.index, row0, col0, row1, col1))
        if len(planes.corners) > 1:
            found = distinct(found)
        count, looked = len({box.slice_index for box in found}), len(planes.content)
        text = f"{len(found)} boxes on {count} of {looked} slices" if found else NO_LESION
        return question.said("detection", text, views, boxes=tuple(found))

    def _diagnosed(self, question: _Question) -> Prediction:
        """Mean over slices through the volume of p(yes) / (p(yes) + p(no)), of a slice's most suspicious view."""
        content = question.planes.content
        count = min(DIAGNOSIS_SLICES, len(content))
        views = question.planes.views([content[round(place)] for place in np.linspace(0, len(content) - 1, count)])
        words = [self.processor.tokens("yes"), self.processor.tokens("no")]
        shares: dict[int, float] = {}
        for part in _batches(views):
            ids, mask, pixels = self._prompts([(question, view) for view in part])
            scores = self.model.answer_probability(ids, mask, pixels, words)
            for view, share in zip(part, (scores[:, 0] / scores.sum(-1).clamp(min=1e-12)).tolist(), strict=True):
                shares[view.index] = max(shares.get(view.index, 0.0), share)
        probability = float(np.mean(list(shares.values())))
        text = f"{'yes' if probability > 0.5 else 'no'} (p = {probability:.2f} over {count} slices)"
        return question.said("diagnosis", text, views)


def _read(path: Path) -> tuple[Volume, NDArray[np.float64] | None]:
    """A volume, and the affine of its file where that is NIfTI."""
    from components.ingestion import read_path
    from components.ingestion.formats.nifti import load
    from components.ingestion.formats.sniff import kind_of

    volume = read_path(path)
    return volume, np.asarray(load(path).affine) if path.is_file() and kind_of(path) == "nifti" else None


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Memory is bounded by views, however large the volume."""
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def _pixels(views: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(views))[:, None, None]


def _changed(planes: Planes, change_DPP: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the network changed, put on the source's own pixels (D, H, W), of which none is lost to its coarser grid, and made to
    agree with the measurement there."""
    measured = planes.measured
    source = planes.volume.voxels / np.float32(planes.scale) if planes.zero_filled is None else planes.zero_filled
    image = np.clip(source + planes.on_source(change_DPP), 0, None)
    if measured is None:
        return image
    parts = batches_of_slices(measured, BATCH)
    return np.concatenate([consistent(torch.from_numpy(image[part])[:, None], some)[:, 0].numpy() for part, some in parts])


def _deviation(draws_KDHW: NDArray[np.float32]) -> NDArray[np.float32] | None:
    return draws_KDHW.std(axis=0, ddof=1, dtype=np.float32) if len(draws_KDHW) > 1 else None


def distinct(boxes: Sequence[FoundBox]) -> list[FoundBox]:
    """Boxes without those that neighbouring views found a second time, the largest of each kept, in their order."""

    def area(box: FoundBox) -> int:
        return max(box.row1 - box.row0, 0) * max(box.col1 - box.col0, 0)

    def same(a: FoundBox, b: FoundBox) -> bool:
        edges = max(a.row0, b.row0), max(a.col0, b.col0), min(a.row1, b.row1), min(a.col1, b.col1)
        shared = area(FoundBox(a.label, a.slice_index, *edges))
        overlap = shared / (area(a) + area(b) - shared)
        return (a.label, a.slice_index) == (b.label, b.slice_index) and overlap >= SAME_BOX

    kept: list[FoundBox] = []
    for box in sorted(boxes, key=area, reverse=True):
        if not any(same(box, other) for other in kept):
            kept.append(box)
    return [box for box in boxes if box in kept]
