"""A loaded model that answers instructions about volumes.

The model itself decides the task by the form of its answer about one tile (:func:`task_of`), among those that the words of the
question name. The task then decodes the answer into a prediction for the whole volume (:meth:`components.tasks.base.Task.decode`).

Shape letters: K samples, D slices, H rows, W columns, V tiles, M side of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
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
from components.home import Home
from components.inference.familiarity import FamiliarImages, Familiarity, encode
from components.inference.prediction import Prediction
from components.inference.question import CONDITIONAL_MEAN, Progress, Question, Sampling, ignore_progress
from components.inference.read_images import read_image, read_images
from components.inference.sliding_window import BATCH, ResampledVolume, Tile
from components.inference.study import Study, StudyQuestion, StudySeries
from components.ingestion.volume import Volume
from components.model_files import PREPROCESSING, resolve_model
from components.provenance import digest
from components.registries import TASKS
from components.settings import TaskName
from components.tasks.base import Task
from components.tasks.calibration import VOLUME_CALIBRATION, Calibration
from components.tasks.kind_weights import read_kind_weights
from components.tasks.known_structures import NONE_KNOWN, KnownStructures, Shown
from components.tasks.scope import Scope, answer_beginnings
from components.tasks.volumetry import NO_VOLUMETRY, Volumetry
from model_core import OmniMRIForConditionalGeneration
from model_core.processing import Processor

MAX_NEW_TOKENS = 200
ABOUT = "about"
"""Folder beside the weights of a registered version, with what its evaluation found."""

logger = logging.getLogger(__name__)


def task_of(answer: str) -> Task:
    """Return the first task that recognizes the form of an answer, or else the task of free text."""
    recognizing = (task for task in TASKS.values() if task.recognizes(answer))
    free_text = (task for task in TASKS.values() if task.is_free_text)
    return next(chain(recognizing, free_text))


@dataclass
class Predictor:
    """A model with its processor and the grid that it was trained on.

    Attributes:
        matrix: side of a tile, pixels.
        pixel_mm: side of a pixel, mm.
        known: structures that the model knows by name.
        calibration: of p(yes) about the slices of a volume.
        volume_calibration: of p(yes) about whole volumes.
        scope: what the model was trained on; None = not recorded, and no question is refused.
        familiar: its training images; None = not recorded, and no image is marked.
        volumetry: findings of whole organs that are predicted from volumes of structures.
    """

    model: OmniMRIForConditionalGeneration
    processor: Processor
    matrix: int
    pixel_mm: float
    known: KnownStructures = NONE_KNOWN
    calibration: Calibration = Calibration()  # noqa: RUF009 (frozen)
    scope: Scope | None = None
    familiar: FamiliarImages | None = None
    volume_calibration: Calibration = Calibration()  # noqa: RUF009 (frozen)
    volumetry: Volumetry = NO_VOLUMETRY
    image_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.image_tokens = self.model.image_tokens_for(1, self.matrix, self.matrix)

    @classmethod
    def load(cls, model: str | Path) -> Predictor:
        """Load a saved model.

        Args:
            model: a folder, or an MLflow URI such as ``models:/omnimri@staging``, looked up in this installation's store.

        Raises:
            BadInput: no such model, or the folder lacks one of its files.
        """
        path = resolve_model(model, Home.open().tracking_uri)
        if not (path / PREPROCESSING).is_file():
            raise BadInput(
                f"no {PREPROCESSING}", where=str(path), remedy="name the model folder of a trained stage or of the registry"
            )
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        grid = read_json(path / PREPROCESSING)
        network = OmniMRIForConditionalGeneration.from_pretrained(path).eval()
        folders = path, path.parent / ABOUT
        return cls(
            network,
            Processor.from_pretrained(path),
            int(grid["matrix"]),
            float(grid["pixel_mm"]),
            replace(KnownStructures.of_model(path), kind_weights=read_kind_weights(*folders)),
            Calibration.read(*folders),
            Scope.read(*folders),
            FamiliarImages.read(*folders),
            Calibration.read(*folders, name=VOLUME_CALIBRATION),
            Volumetry.read(*folders),
        )

    def predict(
        self,
        source: str | Path | Volume,
        instruction: str,
        sampling: Sampling = CONDITIONAL_MEAN,
        on_text: Callable[[str], None] | None = None,
        progress: Progress = ignore_progress,
    ) -> Prediction:
        """Answer an instruction about one volume.

        Args:
            source: a volume, or the path of a file or of the folder of a DICOM series.
            on_text: called with each piece of a report while the report is generated.
            progress: called with (phase, done, total); see :data:`components.inference.question.Progress`.

        Raises:
            BadInput: the instruction is empty, or the file cannot be read.
            OutOfScope: the model was not trained on what is asked for, or on the anatomy that the header states.
        """
        [question] = self._read_questions([(source, instruction)], sampling, progress)
        if on_text is None:
            [answer] = self._first_answers([question], progress)
        else:
            answer = self._streamed_answer(question, on_text, progress)
        return self._decode(question, answer)

    def predict_many(
        self,
        requests: Sequence[tuple[str | Path | Volume, str]],
        sampling: Sampling = CONDITIONAL_MEAN,
        progress: Progress = ignore_progress,
    ) -> list[Prediction]:
        """Answer several (source, instruction) requests, their first answers in batches, with the results of :meth:`predict`."""
        questions = self._read_questions(requests, sampling, progress)
        answers = self._first_answers(questions, progress)
        return [self._decode(question, answer) for question, answer in zip(questions, answers, strict=True)]

    def predict_study(
        self,
        sources: Sequence[str | Path | Volume],
        instruction: str,
        sampling: Sampling = CONDITIONAL_MEAN,
        progress: Progress = ignore_progress,
    ) -> Prediction:
        """Answer an instruction about all series of an examination together, each as a whole volume, in one sequence.

        Masks, images and boxes are those of the series that the instruction names ("the axial T2-FLAIR"), or else of the first.

        Args:
            sources: volumes, or paths of files, of the DICOM folder of a study or of the folder of a BIDS session.

        Raises:
            BadInput: the instruction is empty, a file cannot be read, or the series are of several visits.
        """
        asked, introduction = self._ask(instruction)
        progress("reading", 0, 1)
        read = list(read_images(sources))
        progress("reading", 1, 1)
        for one in read:
            self._require_anatomy(one.volume)
        resampled = (ResampledVolume.from_volume(one.volume, self.matrix, self.pixel_mm) for one in read)
        series = tuple(StudySeries(volume, one.file_affine, one.dicom_files) for volume, one in zip(resampled, read, strict=True))
        for shown in series:
            self._require_shown(instruction, shown.volume, shown.middle)
        study = StudyQuestion(Study(self, series), asked, sampling, instruction)
        progress("answering", 0, 1)
        answer = study.generate(MAX_NEW_TOKENS)
        progress("answering", 1, 1)
        prediction = task_of(answer).decode_study(study, answer)
        familiarity = self._familiarity([shown.volume.crop(shown.middle) for shown in series])
        return replace(prediction, text=f"{introduction}{prediction.text}", familiarity=familiarity)

    def stream(self, source: str | Path | Volume, instruction: str) -> Iterator[str]:
        """Yield the answer about the first tile in pieces of about a word while it is generated."""
        [question] = self._read_questions([(source, instruction)], CONDITIONAL_MEAN, ignore_progress)
        if question.introduction:
            yield question.introduction
        yield from self._stream_text(question)

    def generate_texts(
        self, question: Question, tiles: Sequence[Tile], task: TaskName, prefix: str = "", max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[str]:
        """Generate the answer about each tile, greedily, or what follows ``prefix``. Report progress under the task's name."""
        answers: list[str] = []
        for batch in _batches(tiles):
            answers += self._generate([(question, tile) for tile in batch], prefix, max_new_tokens)
            question.progress(task, len(answers), len(tiles))
        return answers

    def yes_probabilities(self, question: Question, tiles: Sequence[Tile], task: TaskName) -> list[float]:
        """Return p(yes) / (p(yes) + p(no)) of the first word about each tile. Report progress under the task's name."""
        words = [self.processor.tokens("yes"), self.processor.tokens("no")]
        probabilities: list[float] = []
        for batch in _batches(tiles):
            ids, mask, pixels = self._encode([(question, tile) for tile in batch])
            scores = self.model.answer_probability(ids, mask, pixels, words)
            probabilities += (scores[:, 0] / scores.sum(-1).clamp(min=1e-12)).tolist()
            question.progress(task, len(probabilities), len(tiles))
        return probabilities

    def generate_images(
        self, question: Question, tiles: Sequence[Tile], marker: str, target_kind: int, task: TaskName
    ) -> NDArray[np.float32]:
        """Sample the image decoder for each tile, (V, K, M, M). Report progress under the task's name.

        Args:
            marker: answer that requests the image decoder.
            target_kind: TARGET_IMAGE or TARGET_MASK.
        """
        volume, sampling = question.volume, question.sampling
        prompt = self.processor.encode_answer_prefix(question.text, marker, self.image_tokens)
        images: list[NDArray[np.float32]] = []
        for batch in _batches(tiles):
            ids, mask = self.processor.pad([prompt] * len(batch))
            samples_KB1DMM = self.model.generate_images(
                ids,
                mask,
                _pixels([volume.crop(tile) for tile in batch]),
                torch.full((len(batch),), target_kind),
                volume.measurement_of(batch),
                seeds=[int(digest(sampling.seed, tile.index, tile.row, tile.column)[:12], 16) for tile in batch],
                steps=sampling.steps,
                sampler=sampling.sampler,
                draws=sampling.samples,
            )
            images.extend(samples_KB1DMM[:, :, 0, 0].transpose(0, 1).numpy())
            question.progress(task, len(images), len(tiles))
        return np.stack(images)

    def structures(self, question: Question, slices: Sequence[int], task: TaskName) -> Shown | None:
        """Return findings and the structures that the model knows in the anatomy of the question, on the source's grid.

        Slices that are not asked for are zero. None if the model knows no structure at all. Report progress under the task's name.
        """
        volume, names = question.volume, self.known.names
        if not names:
            return None
        header = question.volume.volume.acquisition.anatomy
        words = question.own_words or question.instruction
        known = self.known.in_anatomy(header, words, self.recognized_anatomy(volume, question.first_tile))
        prompt = self.processor.encode_answer_prefix(question.header.before(known.find_instruction), "", self.image_tokens)
        name_ids, _ = self.processor.pad([self.processor.tokens(name) for name in names])
        tiles = volume.tiles(slices)
        found: list[NDArray[np.float32]] = []  # (1 + S, M, M): the mask, then structures
        for batch in _batches(tiles):
            ids, mask = self.processor.pad([prompt] * len(batch))
            pixels = _pixels([volume.crop(tile) for tile in batch])
            masks, logits = self.model.show_structures(ids, mask, pixels, name_ids)
            probabilities = known.probabilities(names, logits[:, :, 0].numpy())
            found.extend(np.stack([masks[:, 0].numpy(), *probabilities.values()], 1))
            question.progress(task, len(found), len(tiles))
        blended = [volume.to_source_grid(values) for values in volume.blend(tiles, np.stack(found))]
        return Shown(blended[0], dict(zip(probabilities, blended[1:], strict=True)))

    def _read_questions(
        self, requests: Sequence[tuple[str | Path | Volume, str]], sampling: Sampling, progress: Progress
    ) -> list[Question]:
        """Read and resample the volumes of the requests."""
        questions = []
        progress("reading", 0, len(requests))
        for source, instruction in requests:
            asked, introduction = self._ask(instruction)
            image = read_image(source)
            self._require_anatomy(image.volume)
            resampled = ResampledVolume.from_volume(image.volume, self.matrix, self.pixel_mm)
            questions.append(Question(resampled, asked, sampling, image.file_affine, progress, introduction, instruction))
            self._require_shown(instruction, resampled, questions[-1].first_tile)
            progress("reading", len(questions), len(requests))
        return questions

    def require_question(self, instruction: str) -> None:
        """Check that an instruction is not empty, and within the scope of the model.

        Raises:
            BadInput: it is empty, or the model was not trained on what it asks for.
        """
        if not instruction.strip():
            remedy = 'give one, e.g. "Segment the white matter in this brain MRI."'
            raise BadInput("an empty instruction", where="instruction", remedy=remedy)
        if self.scope is not None:
            self.scope.require_question(instruction)

    def _ask(self, instruction: str) -> tuple[str, str]:
        """Check an instruction; return it in words that the network was trained on, and what to say before its answer.

        Raises:
            BadInput: see :meth:`require_question`.
        """
        self.require_question(instruction)
        if self.scope is None:
            return instruction, ""
        spelled = self.scope.in_trained_spelling(instruction)
        restated = self.scope.restate(spelled)
        return (spelled, "") if restated is None else (restated, f"{restated} ")

    def _require_anatomy(self, volume: Volume) -> None:
        """Check that the anatomy that the header of a volume states is within the scope of the model."""
        if self.scope is not None:
            self.scope.require_anatomy(volume.acquisition.anatomy)

    def _require_shown(self, instruction: str, volume: ResampledVolume, tile: Tile) -> None:
        """Check that what a question names is shown by images of this anatomy: that of the header, or else of the image itself.

        Raises:
            OutOfScope: it belongs to images of other anatomies only.
        """
        if self.scope is None:
            return
        if (stated := self.scope.trained_anatomy(volume.volume.acquisition.anatomy)) is not None:
            self.scope.require_shown(instruction, stated, "its header says so")
        else:
            because = "by its likeness to training images; no header states the anatomy"
            self.scope.require_shown(instruction, self.recognized_anatomy(volume, tile), because)

    def recognized_anatomy(self, volume: ResampledVolume, tile: Tile) -> str | None:
        """Return the anatomy that the training images most like a tile show; None if they differ, or are of one anatomy only."""
        if self.familiar is None or len(set(self.familiar.anatomies)) < 2:
            return None
        return self.familiar.anatomy(encode(self.model, [volume.crop(tile)])[0])

    def _familiarity(self, tiles: Sequence[NDArray[np.float32]]) -> Familiarity | None:
        """Return the familiarity of the least familiar of some tiles; None if the training images are not known."""
        if self.familiar is None:
            return None
        return max((self.familiar.compare(one) for one in encode(self.model, tiles)), key=lambda found: found.distance)

    def _first_answers(self, questions: Sequence[Question], progress: Progress) -> list[str]:
        """Generate the answer about the first tile of each question, in batches over the questions."""
        answers: list[str] = []
        progress("answering", 0, len(questions))
        for batch in _batches(questions):
            answers += self._generate([(question, question.first_tile) for question in batch])
            progress("answering", len(answers), len(questions))
        return answers

    def _streamed_answer(self, question: Question, on_text: Callable[[str], None], progress: Progress) -> str:
        """Generate the answer about the first tile; pass its pieces on while it has the form of running text."""
        progress("answering", 0, 1)
        answer = ""
        for piece in self._stream_text(question):
            answer += piece
            if task_of(answer.lstrip()).is_free_text:
                on_text(piece)
        progress("answering", 1, 1)
        return answer.strip()

    def _encode(self, prompts: Sequence[tuple[Question, Tile]], prefix: str = "") -> tuple[Tensor, Tensor, Tensor]:
        """Return token ids, attention mask and pixels of the prompts, left-padded for generation."""
        encoded = [self.processor.encode_answer_prefix(question.text, prefix, self.image_tokens) for question, _ in prompts]
        ids, mask = self.processor.pad(encoded, left=True)
        return ids, mask, _pixels([question.volume.crop(tile) for question, tile in prompts])

    def _generate(
        self, prompts: Sequence[tuple[Question, Tile]], prefix: str = "", max_new_tokens: int = MAX_NEW_TOKENS
    ) -> list[str]:
        """Generate one batch of answers."""
        ids, mask, pixels = self._encode(prompts, prefix)
        beginnings = () if prefix else [self.beginnings(question.instruction) for question, _ in prompts]
        answers = self.model.generate_text(ids, mask, pixels, max_new_tokens, beginnings=beginnings)
        return [self.processor.decode(tokens) for tokens in answers]

    def beginnings(self, instruction: str) -> list[list[int]]:
        """Return the token ids one of which the answer begins with (:func:`answer_beginnings`)."""
        return [self.processor.tokens(one) for one in answer_beginnings(instruction)]

    def _stream_text(self, question: Question) -> Iterator[str]:
        """Yield the answer about the first tile piece by piece; generation runs in its own thread."""
        ids, mask, pixels = self._encode([(question, question.first_tile)])
        beginnings = [self.beginnings(question.instruction)]
        streamer = _StoppableStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=False)
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate_text(ids, mask, pixels, MAX_NEW_TOKENS, streamer, beginnings=beginnings)
            except BaseException as failure:
                failures.append(failure)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if text := piece.replace(self.processor.tokenizer.eos_token, ""):
                    yield text
        finally:
            streamer.is_stopped = True  # nobody may want the rest: end at the next token
            thread.join()
        if failures:
            raise failures[0]

    def _decode(self, question: Question, answer: str) -> Prediction:
        prediction = task_of(answer).decode(self, question, answer)
        familiarity = self._familiarity([question.volume.crop(question.first_tile)])
        return replace(prediction, text=f"{question.introduction}{prediction.text}", familiarity=familiarity)


class _StoppableStreamer(TextIteratorStreamer):
    """A streamer that ends the generation when nobody reads it any longer."""

    is_stopped = False

    def put(self, value: Any) -> None:
        if self.is_stopped:
            raise InterruptedError("nobody reads the answer")
        super().put(value)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]


def _pixels(tiles: Sequence[NDArray[np.float32]]) -> Tensor:
    return torch.from_numpy(np.stack(tiles))[:, None, None]
