"""The batches of a stage, each a pure function of the step's number.

Images are augmented in contrast and geometry, so that the few patients of a small corpus are not memorized. Images of
reconstruction are not: their k-space is what was measured.
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

from components.curation.table_rows import InstructionRecord
from components.curation.text.header_facts import HeaderFacts
from components.provenance import digest
from components.registries import TASKS
from components.settings import StageSettings
from components.tasks.base import Image, Target
from components.tasks.measurements import stack_measurements
from components.training.augmentation import AffineParams, Contrast, apply_affine_batch
from components.training.mixture import ALONE, Draw, Mixture, Rank
from components.training.samples import Samples, StructureMap, task_of_source
from components.training.stages.base import Stage
from components.training.structure_labels import with_structures
from components.training.volume_batches import HEADERS_OMITTED, VolumeBatches, step_scope
from model_core.batch import IGNORE, NO_TASK, Batch, ImageBatch, PairedBatch, SequenceBatch
from model_core.boxes import format_boxes, parse_boxes
from model_core.config import OmniMRIConfig
from model_core.processing import Encoded, Processor
from model_core.targets import TARGET_MASK

CACHED_TEXTS = 4096
"""Tokenized texts that are kept: the same few texts return every epoch."""


@dataclass(frozen=True)
class _Sequence:
    """One sample of a :class:`SequenceBatch`."""

    encoded: Encoded
    image: Image
    target: Target
    structures: StructureMap | None = None
    visual_loss: bool = False


class StageBatches:
    """Micro-batches of one stage for one process, by step.

    A step draws ``micro_batch * gradient_accumulation * world_size`` samples, a micro-step the next ``micro_batch * world_size`` of
    them, and process r takes the r-th share of those: the content of a micro-step does not depend on the number of processes.

    Args:
        stage: The stage, which selects and collates the samples.
        samples: Samples of a split.
        settings: Sizes of the step, and the shares of the data categories.
        config: Configuration of the network: visual tokens per image.
        processor: Tokenizer and padding.
        seed: Seed of the run; with the stage's name it keys all random numbers.
        rank: This process.

    Raises:
        ValueError: the mixture contains a category of data that the stage cannot use.
    """

    def __init__(
        self,
        stage: Stage,
        samples: Samples,
        settings: StageSettings,
        config: OmniMRIConfig,
        processor: Processor,
        seed: int,
        rank: Rank = ALONE,
    ) -> None:
        self.stage, self.samples, self.settings, self.config, self.processor = stage, samples, settings, config, processor
        self.rank = rank
        unusable = [category for category, share in settings.mixture if share > 0 and category not in stage.categories]
        if settings.volume_steps and "instruction" not in stage.categories:
            raise ValueError(f"{stage.name} cannot be trained on instructions about volumes: set volume_steps to 0")
        if unusable:
            raise ValueError(f"{stage.name} cannot be trained on {', '.join(unusable)} data: set its share of the mixture to 0")
        self.key = int(digest(seed, stage.name)[:12], 16)
        self.mixture: Mixture = samples.mixture(settings.mixture, self.key)
        self.volumes = VolumeBatches(samples, settings, config, processor, self.key, rank) if settings.volume_steps else None
        self._encode_description = lru_cache(CACHED_TEXTS)(processor.encode_description)
        self._encode_pair = lru_cache(CACHED_TEXTS)(processor.encode_pair)
        self._encode_instruction = lru_cache(CACHED_TEXTS)(processor.encode)

    def __getitem__(self, step: int) -> list[Any]:
        """Return the micro-batches of a step (from 0)."""
        number, before = step_scope(step, self.settings.volume_steps)
        if self.volumes is not None and number is not None:
            return self.volumes.micro_batches(number)
        per_micro_step = self.settings.micro_batch * self.rank.world_size
        per_step = per_micro_step * self.settings.gradient_accumulation
        draws = list(islice(self.mixture.draws((step - before) * per_step), per_step))
        return [self.micro_batch(draws[first : first + per_micro_step], step) for first in range(0, per_step, per_micro_step)]

    def micro_batch(self, draws: Sequence[Draw], step: int) -> Batch:
        """Return this process's share of a micro-step, given the draws of all processes."""
        draws = self.stage.select_draws(draws, step, self.rank.world_size)
        share = len(draws) // self.rank.world_size
        return self.stage.collate(self, draws[self.rank.index * share : (self.rank.index + 1) * share], step)

    def augmentation(self, source: str, draw: Draw) -> tuple[AffineParams, Contrast]:
        """Return the random geometry and contrast of a draw's image; ``source``: name of its source in the mixture.

        Images whose texts state sizes in millimeters are shifted and rotated, not scaled.
        """
        rng = np.random.default_rng([self.key, draw.number])
        affine, contrast = AffineParams.sample(rng), Contrast.sample(rng)
        task = task_of_source(source)
        states_sizes = TASKS[task].states_sizes if task in TASKS else source == "paired"
        return (replace(affine, scale=1.0) if states_sizes else affine), contrast

    def seeds(self, draws: Sequence[Draw]) -> Tensor:
        """Return the per-sample RNG seeds for the objective, int64."""
        hashes = [hashlib.blake2b(f"{self.key}/{draw.number}".encode(), digest_size=8).digest() for draw in draws]
        return torch.tensor([int.from_bytes(value, "big") >> 1 for value in hashes])

    def image_batch(self, draws: Sequence[Draw], slices: int = 1) -> ImageBatch:
        """Collate images without text: single slices, or blocks of ``slices`` neighboring slices."""
        refs = [self.samples.slices[draw.index] for draw in draws]
        contrasts = [self.augmentation("image_only", draw)[1] for draw in draws]
        images = [contrast.apply(self.samples.block(ref, slices)) for ref, contrast in zip(refs, contrasts, strict=True)]
        return ImageBatch(
            pixel_values_B1DHW=torch.from_numpy(np.stack(images))[:, None],
            volume_B=torch.tensor([self.samples.numbers[ref.volume_id] for ref in refs]),
            group_B=torch.tensor([self.samples.groups[ref.volume_id] for ref in refs]),
            seed_B=self.seeds(draws),
        )

    def paired_batch(self, draws: Sequence[Draw]) -> PairedBatch:
        """Collate single slices with the descriptions of their volumes."""
        refs = [self.samples.slices[draw.index] for draw in draws]
        affines, contrasts = zip(*(self.augmentation("paired", draw) for draw in draws), strict=True)
        transformed = apply_affine_batch(np.stack([self.samples.image(ref) for ref in refs]), affines)
        images = [contrast.apply(image) for image, contrast in zip(transformed, contrasts, strict=True)]
        ids, mask = self.processor.pad([self._encode_description(self.samples.text(ref)) for ref in refs])
        return PairedBatch(torch.from_numpy(np.stack(images))[:, None, None], ids, mask, seed_B=self.seeds(draws))

    def sequence_batch(self, draws: Sequence[Draw]) -> SequenceBatch:
        """Collate instructions, and pairs in either order, half and half.

        Where the text of a pair precedes the image, the image is predicted.
        """
        names = [self.mixture.sources[draw.source].name for draw in draws]
        sequences = [
            self._pair(draw) if name == "paired" else self._instruction(name, draw) for name, draw in zip(names, draws, strict=True)
        ]
        batch = collate_sequences(
            self.processor,
            [sequence.encoded for sequence in sequences],
            [sequence.image for sequence in sequences],
            [sequence.target for sequence in sequences],
            visual_loss=[sequence.visual_loss for sequence in sequences],
        )
        tasks = tuple(TASKS)
        of_sources = [task_of_source(name) for name in names]
        task_B = torch.tensor([tasks.index(task) if task in tasks else NO_TASK for task in of_sources])
        batch = replace(batch, seed_B=self.seeds(draws), task_B=task_B, tasks=tasks)
        return with_structures(batch, self.samples, self.processor, [sequence.structures for sequence in sequences])

    def _pair(self, draw: Draw) -> _Sequence:
        affine, contrast = self.augmentation("paired", draw)
        ref = self.samples.slices[draw.index]
        image = contrast.apply(affine.apply(self.samples.image(ref)))
        text_first = bool(draw.source_number % 2)
        encoded = self._encode_pair(self.samples.text(ref), self._image_tokens(image), image_first=not text_first)
        return _Sequence(encoded, image, Target.none(image), visual_loss=text_first)

    def _instruction(self, source: str, draw: Draw) -> _Sequence:
        affine, contrast = self.augmentation(source, draw)
        task, record = task_of_source(source), self.samples.instruction(source, draw.index)
        rng = np.random.default_rng([self.key, draw.number, 2])
        record = TASKS[task].vary(record, self.samples.corpus.volumes[record.volume_id], rng)
        image, target = self.samples.input_and_target(record)
        structures = self.samples.structure_map(record)
        question = self._question(record, draw)
        if not TASKS[task].is_augmented:
            encoded = self._encode_instruction(question, record.response, self._image_tokens(image))
            return _Sequence(encoded, image, target, structures)
        response = record.response
        if boxes := parse_boxes(response):
            affine = affine.keeping_inside(boxes)
            response = format_boxes(affine.transform_boxes(boxes))
        image = contrast.apply(affine.apply(image))
        if target.kind == TARGET_MASK:
            target = replace(target, image=affine.apply(target.image, nearest=True))
        if structures is not None:
            numbers = affine.apply(structures.numbers.astype(np.float32), nearest=True)
            structures = replace(structures, numbers=numbers.astype(np.int64))
        encoded = self._encode_instruction(question, response, self._image_tokens(image))
        return _Sequence(encoded, image, target, structures)

    def _question(self, record: InstructionRecord, draw: Draw) -> str:
        """Return an instruction after the line of header facts, which a third of the draws omits."""
        if np.random.default_rng([self.key, draw.number, 1]).random() < HEADERS_OMITTED:
            return record.instruction
        return HeaderFacts.of_record(self.samples.corpus.volumes[record.volume_id]).before(record.instruction)

    def _image_tokens(self, image: Image) -> int:
        grid = self.config.image_grid(1, *image.shape)
        return grid[1] * grid[2]


def collate_sequences(
    processor: Processor,
    encoded: Sequence[Encoded],
    images: Sequence[Image],
    targets: Sequence[Target],
    visual_loss: Sequence[bool],
) -> SequenceBatch:
    """Collate single slices with their tokens and targets.

    Args:
        processor: Padding.
        encoded: Token ids and labels of each sample.
        images: Input image of each sample, (H, W) float32.
        targets: Target of each sample.
        visual_loss: Whether the visual tokens of each sample are predicted.
    """
    ids, mask = processor.pad([tokens.input_ids for tokens in encoded])
    labels, _ = processor.pad([tokens.labels for tokens in encoded], IGNORE)

    def stack(arrays: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack(arrays))

    measured = stack_measurements(targets)
    return SequenceBatch(
        input_ids_BL=ids,
        attention_mask_BL=mask,
        labels_BL=labels,
        pixel_values_B1DHW=stack(images)[:, None, None],
        visual_loss_B=torch.tensor(list(visual_loss)),
        target_B1DHW=stack([target.image for target in targets])[:, None, None],
        target_kind_B=torch.tensor([target.kind for target in targets]),
        kspace_BCDHW=measured.kspace_BCDHW,
        sampling_BDHW=measured.sampling_BDHW,
        coil_maps_BCDHW=measured.coil_maps_BCDHW,
    )
