"""Answers of a model to held-out cases, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.progress import track
from components.provenance import digest
from components.registries import TASKS
from components.settings import EvaluationSettings
from components.tasks.base import Image, Target
from model_core import OmniMRIForConditionalGeneration
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.processing import Processor

BATCH = 8


@dataclass(frozen=True)
class Case:
    """A held-out instruction with its (H, W) input image and its target."""

    record: InstructionRecord
    image: Image
    target: Target


def load_cases(corpus: Corpus, records: Sequence[InstructionRecord]) -> list[Case]:
    """Read the arrays of held-out instructions."""
    return [Case(record, *TASKS[record.task].input_and_target(record, corpus.store)) for record in records]


class AnswerGenerator:
    """A model that answers cases."""

    def __init__(
        self, model: OmniMRIForConditionalGeneration, processor: Processor, settings: EvaluationSettings, seed: int
    ) -> None:
        self.model, self.processor, self.settings, self.seed = model.eval(), processor, settings, seed

    def images(self, cases: Sequence[Case], steps: int, samples: int) -> list[NDArray[np.float32]]:
        """Return images or mask probabilities (H, W): the mean of ``samples`` samples of ``steps`` sampler steps."""
        images: list[NDArray[np.float32]] = []
        for batch in _batches(cases, f" ({samples} x {steps} steps)"):
            prompts = [
                self.processor.encode_answer_prefix(case.record.instruction, case.record.response, self._image_tokens(case))
                for case in batch
            ]
            ids, mask = self.processor.pad(prompts)
            means_B1DHW = self.model.generate_image(
                ids,
                mask,
                _pixels(batch),
                torch.tensor([case.target.kind for case in batch]),
                measured=KSpaceMeasurement(
                    _stack([case.target.kspace for case in batch])[:, None, None],
                    _stack([case.target.sampling for case in batch])[:, None],
                ),
                seeds=[int(digest(self.seed, case.record.sample_id)[:12], 16) for case in batch],
                steps=steps,
                draws=samples,
            )
            images.extend(means_B1DHW[:, 0, 0].numpy())
        return images

    def texts(self, cases: Sequence[Case]) -> list[str]:
        """Return greedy answers."""
        texts: list[str] = []
        for batch in _batches(cases):
            ids, mask = self._prompts(batch)
            answers = self.model.generate_text(ids, mask, _pixels(batch), self.settings.max_new_tokens)
            texts.extend(self.processor.decode(answer) for answer in answers)
        return texts

    def confidences(self, cases: Sequence[Case], answers: Sequence[str]) -> list[float]:
        """Return the mean token probability of each answer after its instruction; 0 for an empty answer."""
        confidences: list[float] = []
        for case, answer in zip(cases, answers, strict=True):
            tokens = self.processor.tokens(answer)
            ids, mask = self.processor.pad([self._prompt(case)])
            scores = self.model.answer_probability(ids, mask, _pixels([case]), [tokens]) if tokens else None
            confidences.append(0.0 if scores is None else float(scores))
        return confidences

    def yes_probabilities(self, cases: Sequence[Case]) -> list[float]:
        """Return p(yes) / (p(yes) + p(no)) of the first word of each answer."""
        probabilities: list[float] = []
        yes, no = self.processor.tokens("yes"), self.processor.tokens("no")
        for batch in _batches(cases):
            ids, mask = self._prompts(batch)
            scores = self.model.answer_probability(ids, mask, _pixels(batch), [yes, no])
            probabilities.extend((scores[:, 0] / scores.sum(-1).clamp(min=1e-12)).tolist())
        return probabilities

    def _prompt(self, case: Case) -> list[int]:
        return self.processor.encode(case.record.instruction, None, self._image_tokens(case)).input_ids

    def _prompts(self, cases: Sequence[Case]) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask, left-padded for generation."""
        return self.processor.pad([self._prompt(case) for case in cases], left=True)

    def _image_tokens(self, case: Case) -> int:
        return self.model.image_tokens_for(1, *case.image.shape)


def _batches(cases: Sequence[Case], description: str = "") -> Iterator[Sequence[Case]]:
    """Yield batches of cases and show progress under the name of their task."""
    task = cases[0].record.task if cases else ""
    yield from track([cases[first : first + BATCH] for first in range(0, len(cases), BATCH)], f"{task}{description}")


def _stack(arrays: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _pixels(cases: Sequence[Case]) -> Tensor:
    return _stack([case.image for case in cases])[:, None, None]
