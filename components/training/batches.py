"""The batches of each stage, each a pure function of the step's number.

Images vary in contrast and place, so that the few patients of a small corpus are not learnt by heart. Those of reconstruction do
not: their k-space is what was measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from components.provenance import digest
from components.registries import TASKS
from components.settings import BLOCK_SLICES, StageName, StageSettings, block_samples
from components.tasks.base import Image, Target
from components.training.augmentation import Contrast, Movement, moved_together
from components.training.mixture import Draw, Mixture
from components.training.samples import Samples
from model_core.batch import IGNORE, NO_TASK, Batch, ImageBatch, PairedBatch, SequenceBatch
from model_core.boxes import format_boxes, parse_boxes
from model_core.config import OmniMRIConfig
from model_core.processing import Encoded, Processor
from model_core.targets import TARGET_MASK

KEPT_TEXTS = 4096
BLOCK_EVERY = 4
"""Every fourth step of vision pretraining sees blocks of four slices, the others single slices: one encoder serves both."""


@dataclass(frozen=True)
class Rank:
    """This process among those that train together."""

    number: int = 0
    count: int = 1


class BatchMaker:
    """Batches of one stage for one process.

    A step draws ``micro_batch * gradient_accumulation * processes`` samples, a micro-step the next ``micro_batch * processes`` of
    them, and process r takes the r-th part of those: what a micro-step holds does not depend on how many processes share it.
    """

    def __init__(
        self,
        stage: StageName,
        samples: Samples,
        settings: StageSettings,
        config: OmniMRIConfig,
        processor: Processor,
        seed: int,
        rank: Rank = Rank(),
    ) -> None:
        self.stage, self.samples, self.settings, self.config, self.processor = stage, samples, settings, config, processor
        self.rank = rank
        self.key = int(digest(seed, stage)[:12], 16)
        self.mixture: Mixture = samples.mixture(settings.mixture, self.key)
        # The same few texts come again every epoch; their tokens are made once.
        self._described = lru_cache(KEPT_TEXTS)(processor.encode_description)
        self._paired = lru_cache(KEPT_TEXTS)(processor.encode_pair)
        self._instructed = lru_cache(KEPT_TEXTS)(processor.encode)

    def __getitem__(self, step: int) -> list[Any]:
        """Micro-batches of a step."""
        together = self.settings.micro_batch * self.rank.count
        count = together * self.settings.gradient_accumulation
        draws = list(islice(self.mixture.draws(step * count), count))
        return [self.make(draws[first : first + together], step) for first in range(0, count, together)]

    def make(self, together: Sequence[Draw], step: int) -> Batch:
        """This process's part of a micro-step."""
        in_blocks = self.stage == "vision_pretraining" and step % BLOCK_EVERY == BLOCK_EVERY - 1
        if in_blocks:
            together = together[: block_samples(len(together), self.rank.count)]
        mine = len(together) // self.rank.count
        draws = together[self.rank.number * mine : (self.rank.number + 1) * mine]
        if self.stage == "vision_pretraining":
            return self._images(draws, BLOCK_SLICES if in_blocks else 1)
        if self.stage == "alignment":
            return self._pairs(draws)
        return self._sequences(draws)

    def variation(self, name: str, draw: Draw) -> tuple[Movement, Contrast]:
        """Of a draw's image, at random."""
        rng = np.random.default_rng([self.key, draw.number])
        movement, contrast = Movement.drawn(rng), Contrast.drawn(rng)
        states_sizes = TASKS[name].states_sizes if name in TASKS else name == "paired"  # in millimeters: not to be magnified
        return (replace(movement, scale=1.0) if states_sizes else movement), contrast

    def _seeds(self, draws: Sequence[Draw]) -> Tensor:
        """Of the random numbers that the objective needs for each draw."""
        hashes = [hashlib.blake2b(f"{self.key}/{draw.number}".encode(), digest_size=8).digest() for draw in draws]
        return torch.tensor([int.from_bytes(one, "big") >> 1 for one in hashes])

    def _images(self, draws: Sequence[Draw], slices: int) -> ImageBatch:
        refs = [self.samples.slices[draw.index] for draw in draws]
        contrasts = [self.variation("image_only", draw)[1] for draw in draws]
        images = [contrast.image(self.samples.block(ref, slices)) for ref, contrast in zip(refs, contrasts, strict=True)]
        return ImageBatch(
            pixel_values_B1DHW=torch.from_numpy(np.stack(images))[:, None],
            volume_B=torch.tensor([self.samples.numbers[ref.volume_id] for ref in refs]),
            group_B=torch.tensor([self.samples.groups[ref.volume_id] for ref in refs]),
            seed_B=self._seeds(draws),
        )

    def _pairs(self, draws: Sequence[Draw]) -> PairedBatch:
        refs = [self.samples.slices[draw.index] for draw in draws]
        movements, contrasts = zip(*(self.variation("paired", draw) for draw in draws), strict=True)
        moved = moved_together(np.stack([self.samples.image(ref) for ref in refs]), movements)
        images = [contrast.image(image) for image, contrast in zip(moved, contrasts, strict=True)]
        ids, mask = self.processor.pad([self._described(self.samples.text(ref)) for ref in refs])
        return PairedBatch(torch.from_numpy(np.stack(images))[:, None, None], ids, mask, seed_B=self._seeds(draws))

    def _sequences(self, draws: Sequence[Draw]) -> SequenceBatch:
        """Pairs in either order, half and half, and instructions. Where the text comes first, the image is what is predicted."""
        parts = [self._sequence(draw) for draw in draws]
        batch = sequence_batch(
            self.processor,
            [part[0] for part in parts],
            [part[1] for part in parts],
            [part[2] for part in parts],
            visual_loss=[part[3] for part in parts],
        )
        names = [self.mixture.sources[draw.source].name for draw in draws]
        tasks = tuple(TASKS)
        task_B = torch.tensor([tasks.index(name) if name in tasks else NO_TASK for name in names])
        return replace(batch, seed_B=self._seeds(draws), task_B=task_B, tasks=tasks)

    def _sequence(self, draw: Draw) -> tuple[Encoded, Image, Target, bool]:
        name = self.mixture.sources[draw.source].name
        movement, contrast = self.variation(name, draw)
        if name == "paired":
            ref = self.samples.slices[draw.index]
            image = contrast.image(movement.image(self.samples.image(ref)))
            text_first = bool(draw.before % 2)
            encoded = self._paired(self.samples.text(ref), self._tokens(image), image_first=not text_first)
            return encoded, image, Target.none(image), text_first
        record = self.samples.instructions[name][draw.index]
        image, target = self.samples.input_and_target(record)
        if not TASKS[name].is_augmented:
            return self._instructed(record.instruction, record.response, self._tokens(image)), image, target, False
        response = record.response
        if boxes := parse_boxes(response):
            movement = movement.keeping(boxes)
            response = format_boxes(movement.boxes(boxes))
        image = contrast.image(movement.image(image))
        if target.kind == TARGET_MASK:
            target = replace(target, image=movement.image(target.image, nearest=True))
        encoded = self._instructed(record.instruction, response, self._tokens(image))
        return encoded, image, target, False

    def _tokens(self, image: Image) -> int:
        grid = self.config.image_grid(1, *image.shape)
        return grid[1] * grid[2]


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
