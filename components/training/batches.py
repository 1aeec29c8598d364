"""The batches of each stage, each a pure function of the step's number.

Augmentation is a change of contrast only: a flip would make "left" wrong in the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.provenance import digest
from components.settings import StageName, StageSettings
from components.training.mixture import Draw, Mixture
from components.training.samples import Image, Samples, Target
from model_core.batch import IGNORE, TARGET_NONE, Batch, ImageBatch, PairedBatch, SequenceBatch
from model_core.config import OmniMRIConfig
from model_core.processing import Encoded, Processor

BLOCK_EVERY, BLOCK_SLICES = 4, 4
"""Every fourth step of vision pretraining sees blocks of four slices, the others single slices: one encoder serves both."""


@dataclass(frozen=True)
class Rank:
    """This process among those that train together."""

    number: int = 0
    count: int = 1


class BatchMaker:
    """Batches of one stage for one process.

    Every step draws ``micro_batch * gradient_accumulation * processes`` samples; process r takes the r-th part of them.
    """

    def __init__(
        self, stage: StageName, samples: Samples, settings: StageSettings, config: OmniMRIConfig, processor: Processor, seed: int,
        rank: Rank = Rank(),
    ) -> None:  # fmt: skip
        self.stage, self.samples, self.settings, self.config, self.processor = stage, samples, settings, config, processor
        self.rank = rank
        self.key = int(digest(seed, stage)[:12], 16)
        self.mixture: Mixture = samples.mixture(settings.mixture, self.key)

    def steps(self, start: int) -> Iterator[list[Any]]:
        """Micro-batches of every step from ``start`` on, endlessly."""
        settings = self.settings
        mine = settings.micro_batch * settings.gradient_accumulation
        draws = self.mixture.draws(start * mine * self.rank.count)
        step = start
        while True:
            together = list(islice(draws, mine * self.rank.count))
            part = together[self.rank.number * mine : (self.rank.number + 1) * mine]
            yield [
                self.make(part[first : first + settings.micro_batch], step) for first in range(0, mine, settings.micro_batch)
            ]  # fmt: skip
            step += 1

    def make(self, draws: Sequence[Draw], step: int) -> Batch:
        """One micro-batch."""
        if self.stage == "vision_pretraining":
            return self._images(draws, step)
        if self.stage == "alignment":
            return self._pairs(draws)
        return self._sequences(draws)

    def _contrast(self, image: Image, draw: Draw) -> Image:
        """Random gain and gamma of a draw."""
        rng = np.random.default_rng([self.key, draw.number])
        gain, gamma = rng.uniform(0.9, 1.1), rng.uniform(0.9, 1.1)
        return (gain * np.clip(image, 0, None) ** gamma).astype(np.float32)

    def _images(self, draws: Sequence[Draw], step: int) -> ImageBatch:
        in_blocks = step % BLOCK_EVERY == BLOCK_EVERY - 1
        if in_blocks:
            draws = draws[: max(len(draws) // BLOCK_SLICES, 2)]
        slices = BLOCK_SLICES if in_blocks else 1
        refs = [self.samples.slices[draw.index] for draw in draws]
        images = [self._contrast(self.samples.block(ref, slices), draw) for ref, draw in zip(refs, draws, strict=True)]
        return ImageBatch(
            pixel_values_B1DHW=torch.from_numpy(np.stack(images))[:, None],
            volume_B=torch.tensor([self.samples.numbers[ref.volume_id] for ref in refs]),
            group_B=torch.tensor([self.samples.groups[ref.volume_id] for ref in refs]),
        )

    def _pairs(self, draws: Sequence[Draw]) -> PairedBatch:
        refs = [self.samples.slices[draw.index] for draw in draws]
        images = [self._contrast(self.samples.image(ref), draw) for ref, draw in zip(refs, draws, strict=True)]
        ids, mask = self.processor.pad([self.processor.encode_description(self.samples.text(ref)) for ref in refs])
        return PairedBatch(torch.from_numpy(np.stack(images))[:, None, None], ids, mask)

    def _sequences(self, draws: Sequence[Draw]) -> SequenceBatch:
        """Pairs in either order, half and half, and instructions. Where the text comes first, the image is what is predicted."""
        parts = [self._sequence(draw) for draw in draws]
        return sequence_batch(
            self.processor,
            [part[0] for part in parts],
            [part[1] for part in parts],
            [part[2] for part in parts],
            visual_loss=[part[3] for part in parts],
        )

    def _sequence(self, draw: Draw) -> tuple[Encoded, Image, Target, bool]:
        name = self.mixture.sources[draw.source].name
        if name == "paired":
            ref = self.samples.slices[draw.index]
            image = self._contrast(self.samples.image(ref), draw)
            text_first = bool(draw.before % 2)
            encoded = self.processor.encode_pair(self.samples.text(ref), self._tokens(image), image_first=not text_first)
            return encoded, image, no_target(image), text_first
        record = self.samples.instructions[name][draw.index]
        image, target = self.samples.input_and_target(record)
        image = image if name == "reconstruction" else self._contrast(image, draw)
        encoded = self.processor.encode(record.instruction, record.response, self._tokens(image))
        return encoded, image, target, False

    def _tokens(self, image: Image) -> int:
        grid = self.config.image_grid(1, *image.shape)
        return grid[1] * grid[2]


def no_target(image: Image) -> Target:
    """A sample that asks for text only."""
    return Target(TARGET_NONE, np.zeros_like(image), np.zeros(image.shape, np.complex64), np.zeros(image.shape, np.bool_))


def sequence_batch(
    processor: Processor,
    encoded: Sequence[Encoded],
    images: Sequence[Image],
    targets: Sequence[Target],
    visual_loss: Sequence[bool],
) -> SequenceBatch:
    """Collate single slices."""
    ids, mask = processor.pad([one.input_ids for one in encoded])
    labels, _ = processor.pad([one.labels for one in encoded], IGNORE)

    def stacked(arrays: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    return SequenceBatch(
        input_ids_BL=ids,
        attention_mask_BL=mask,
        labels_BL=labels,
        pixel_values_B1DHW=stacked(images)[:, None, None],
        visual_loss_B=torch.tensor(list(visual_loss)),
        target_B1DHW=stacked([target.image for target in targets])[:, None, None],
        target_kind_B=torch.tensor([target.kind for target in targets]),
        kspace_BDHW=stacked([target.kspace for target in targets])[:, None],
        sampling_BDHW=stacked([target.sampling for target in targets])[:, None],
    )
