"""The model's answers to the cases, in batches."""

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
from components.settings import EvaluationSettings
from components.training.samples import Image, Target, input_and_target
from model_core import OmniMRIForConditionalGeneration
from model_core.mri_physics.sense import Measured
from model_core.processing import Processor

BATCH = 8


@dataclass(frozen=True)
class Case:
    """A held-out case with its arrays."""

    record: InstructionRecord
    image: Image
    target: Target


def load_cases(corpus: Corpus, records: Sequence[InstructionRecord]) -> list[Case]:
    """Read the arrays of the cases."""
    return [Case(record, *input_and_target(corpus, record)) for record in records]


class Answerer:
    """A model that answers cases."""

    def __init__(
        self, model: OmniMRIForConditionalGeneration, processor: Processor, settings: EvaluationSettings, seed: int
    ) -> None:
        self.model, self.processor, self.settings, self.seed = model.eval(), processor, settings, seed

    def _batches(self, cases: Sequence[Case], what: str) -> Iterator[Sequence[Case]]:
        yield from track([cases[first : first + BATCH] for first in range(0, len(cases), BATCH)], what)

    def _pixels(self, cases: Sequence[Case]) -> Tensor:
        return torch.from_numpy(np.stack([case.image for case in cases]))[:, None, None]

    def _tokens(self, case: Case) -> int:
        return self.model.image_tokens_for(1, *case.image.shape)

    def images(self, cases: Sequence[Case], steps: int, samples: int) -> list[NDArray[np.float32]]:
        """Images or mask probabilities (H, W)."""
        made: list[Any] = []

        def stacked(arrays: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(arrays))

        for batch in self._batches(cases, f"{cases[0].record.task if cases else ''} ({samples} x {steps} steps)"):
            prompts = [
                self.processor.encode_answer_prefix(case.record.instruction, case.record.response, self._tokens(case))
                for case in batch
            ]
            ids, mask = self.processor.pad(prompts)
            result = self.model.generate_image(
                ids,
                mask,
                self._pixels(batch),
                torch.tensor([case.target.kind for case in batch]),
                measured=Measured(
                    stacked([case.target.kspace for case in batch])[:, None, None],
                    stacked([case.target.sampling for case in batch])[:, None],
                ),
                seeds=[int(digest(self.seed, case.record.sample_id)[:12], 16) for case in batch],
                steps=steps,
                draws=samples,
            )
            made.extend(result[:, 0, 0].numpy())
        return made

    def texts(self, cases: Sequence[Case]) -> list[str]:
        """Greedy answers."""
        made: list[str] = []
        for batch in self._batches(cases, cases[0].record.task if cases else ""):
            prompts = [self.processor.encode(case.record.instruction, None, self._tokens(case)).input_ids for case in batch]
            ids, mask = self.processor.pad(prompts, left=True)
            answers = self.model.generate_text(ids, mask, self._pixels(batch), self.settings.max_new_tokens)
            made.extend(self.processor.decode(answer) for answer in answers)
        return made

    def confidences(self, cases: Sequence[Case], answers: Sequence[str]) -> list[float]:
        """Mean probability of the tokens of each answer after its question; 0 for an empty answer."""
        made: list[float] = []
        for case, answer in zip(cases, answers, strict=True):
            tokens = self.processor.tokens(answer)
            ids, mask = self.processor.pad([self.processor.encode(case.record.instruction, None, self._tokens(case)).input_ids])
            scores = self.model.answer_probability(ids, mask, self._pixels([case]), [tokens]) if tokens else None
            made.append(0.0 if scores is None else float(scores))
        return made

    def yes_probabilities(self, cases: Sequence[Case]) -> list[float]:
        """p(yes) / (p(yes) + p(no)) of the answer's first word."""
        made: list[float] = []
        yes, no = self.processor.tokens("yes"), self.processor.tokens("no")
        for batch in self._batches(cases, "diagnosis"):
            prompts = [self.processor.encode(case.record.instruction, None, self._tokens(case)).input_ids for case in batch]
            ids, mask = self.processor.pad(prompts, left=True)
            scores = self.model.answer_probability(ids, mask, self._pixels(batch), [yes, no])
            made.extend((scores[:, 0] / scores.sum(-1).clamp(min=1e-12)).tolist())
        return made
