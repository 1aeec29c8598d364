"""Answers of a model to held-out cases, in batches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.curation.corpus import Corpus
from components.curation.table_rows import InstructionRecord
from components.curation.text.header_facts import NO_HEADER, HeaderFacts
from components.inference.familiarity import FamiliarImages, encode
from components.progress import track
from components.provenance import digest
from components.registries import TASKS
from components.settings import EvaluationSettings
from components.tasks.base import Image, Target
from components.tasks.known_structures import NONE_KNOWN, KnownStructures, Shown
from components.tasks.measurements import stack_measurements
from components.tasks.volumetry import NO_VOLUMETRY, Shares, Volumetry
from model_core import OmniMRIForConditionalGeneration
from model_core.processing import Processor

BATCH = 8


@dataclass(frozen=True)
class Case:
    """A held-out instruction with its (H, W) input image, its target, and the header of its volume."""

    record: InstructionRecord
    image: Image
    target: Target
    header: HeaderFacts = NO_HEADER

    @property
    def question(self) -> str:
        """The instruction after the line of header facts."""
        return self.header.before(self.record.instruction)


def load_cases(corpus: Corpus, records: Sequence[InstructionRecord]) -> list[Case]:
    """Read the arrays of held-out instructions."""
    headers = {record.volume_id: HeaderFacts.of_record(corpus.volumes[record.volume_id]) for record in records}
    return [
        Case(record, *TASKS[record.task].input_and_target(record, corpus.store), headers[record.volume_id]) for record in records
    ]


class AnswerGenerator:
    """A model that answers cases.

    Attributes:
        familiar: its training images, which decide the anatomy of an image where the question does not; None = not known.
        volumetry: findings of whole organs that are predicted from volumes of structures.
        shares: volume_id -> the shares of its structures, of the volumes that were measured.
    """

    familiar: FamiliarImages | None = None
    volumetry: Volumetry = NO_VOLUMETRY

    def __init__(
        self,
        model: OmniMRIForConditionalGeneration,
        processor: Processor,
        settings: EvaluationSettings,
        seed: int,
        known: KnownStructures = NONE_KNOWN,
    ) -> None:
        self.model, self.processor, self.settings, self.seed = model.eval(), processor, settings, seed
        self.known = known
        self.shares: dict[str, Shares] = {}

    @classmethod
    def load(cls, model_dir: Path, settings: EvaluationSettings, seed: int) -> AnswerGenerator:
        """Load a saved model with its tokenizer and the structures that it knows."""
        model = OmniMRIForConditionalGeneration.from_pretrained(model_dir)
        return cls(model, Processor.from_pretrained(model_dir), settings, seed, KnownStructures.of_model(model_dir))

    def images(self, cases: Sequence[Case], steps: int, samples: int, marker: str | None = None) -> list[NDArray[np.float32]]:
        """Return images or mask probabilities (H, W): the mean of ``samples`` samples of ``steps`` sampler steps.

        Args:
            cases: of one task.
            steps, samples: of the image decoder.
            marker: beginning of the answer that requests the image decoder; None = the response of the case.
        """
        images: list[NDArray[np.float32]] = []
        for batch in _batches(cases, f" ({samples} x {steps} steps)"):
            prompts = [
                self.processor.encode_answer_prefix(
                    case.question, case.record.response if marker is None else marker, self._image_tokens(case)
                )
                for case in batch
            ]
            ids, mask = self.processor.pad(prompts)
            means_B1DHW = self.model.generate_image(
                ids,
                mask,
                _pixels(batch),
                torch.tensor([case.target.kind for case in batch]),
                measured=stack_measurements([case.target for case in batch]),
                seeds=[int(digest(self.seed, case.record.sample_id)[:12], 16) for case in batch],
                steps=steps,
                draws=samples,
            )
            images.extend(means_B1DHW[:, 0, 0].numpy())
        return images

    def structures(self, cases: Sequence[Case]) -> list[Shown | None]:
        """Return findings and the structures that the model knows in the anatomy of each case; None if it knows none at all."""
        found: list[Shown | None] = []
        recognized = self._recognized_anatomies(cases)
        for batch in _batches(cases, " (structures)") if self.known.label_maps else ():
            known = [self.known.in_anatomy(case.question, recognized.get(case.record.volume_id)) for case in batch]
            prompts = [
                self.processor.encode_answer_prefix(case.header.before(own.find_instruction), "", self._image_tokens(case))
                for case, own in zip(batch, known, strict=True)
            ]
            ids, mask = self.processor.pad(prompts)
            names = self.known.names
            name_ids, _ = self.processor.pad([self.processor.tokens(name) for name in names])
            masks, logits = self.model.show_structures(ids, mask, _pixels(batch), name_ids)
            for own, mask_HW, logits_SHW in zip(known, masks[:, 0].numpy(), logits[:, :, 0].numpy(), strict=True):
                found.append(Shown(mask_HW, {name: p[0] for name, p in own.probabilities(names, logits_SHW[None]).items()}))
        return found or [None] * len(cases)

    def _recognized_anatomies(self, cases: Sequence[Case]) -> dict[str, str]:
        """Return volume_id -> anatomy by likeness to training images; only for volumes whose slices resemble one anatomy."""
        if self.familiar is None or len(set(self.familiar.anatomies)) < 2:
            return {}
        recognized: dict[str, set[str]] = defaultdict(set)
        for case, features in zip(cases, encode(self.model, [case.image for case in cases]), strict=True):
            if anatomy := self.familiar.anatomy(features):
                recognized[case.record.volume_id].add(anatomy)
        return {volume_id: next(iter(found)) for volume_id, found in recognized.items() if len(found) == 1}

    def texts(self, cases: Sequence[Case], prefix: str = "", max_new_tokens: int | None = None) -> list[str]:
        """Return greedy answers, or what follows a given beginning of the answers.

        Args:
            cases: of one task.
            prefix: beginning of every answer.
            max_new_tokens: largest length; None = that of the settings.
        """
        texts: list[str] = []
        for batch in _batches(cases):
            ids, mask = self._prompts(batch, prefix)
            answers = self.model.generate_text(ids, mask, _pixels(batch), max_new_tokens or self.settings.max_new_tokens)
            texts.extend(self.processor.decode(answer) for answer in answers)
        return texts

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
        return self.processor.encode(case.question, None, self._image_tokens(case)).input_ids

    def _prompts(self, cases: Sequence[Case], prefix: str = "") -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask, left-padded for generation."""
        beginning = self.processor.tokens(prefix)
        return self.processor.pad([[*self._prompt(case), *beginning] for case in cases], left=True)

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
