"""The batches of steps that use whole volumes and studies, each a pure function of its number among such steps.

A micro-step has volumes of one depth, so that their shapes agree: the largest number of slices that all of them have, at most
``volume_slices``, evenly spaced. A few slices of the volume in question teach the image decoder.

Shape letters: B samples, M images of all samples, D slices, T target slices, H rows, W columns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from components.curation.table_rows import VolumeInstructionRecord
from components.curation.text.header_facts import HeaderFacts
from components.registries import TASKS
from components.settings import StageSettings
from components.tasks.base import Image, Target
from components.tasks.measurements import stack_measurements
from components.training.augmentation import AffineParams, Contrast, apply_affine_batch
from components.training.mixture import Draw, Rank
from components.training.samples import Samples, StructureMap
from components.training.structure_labels import with_structures
from model_core.batch import SequenceBatch
from model_core.boxes import format_boxes, parse_boxes
from model_core.config import OmniMRIConfig
from model_core.processing import Encoded, Processor, Series
from model_core.targets import TARGET_MASK, TARGET_NONE

HEADERS_OMITTED = 1 / 3
"""Share of the instructions without header facts, so that the model also answers about images whose header states none."""


def step_scope(step: int, share: float) -> tuple[int | None, int]:
    """Return the number of a step (from 0) among those with volumes, None for one with slices, and how many of these precede it.

    Every prefix of n steps has ``floor(n * share)`` steps with volumes.
    """
    exact = Fraction(share).limit_denominator(10_000)
    before, after = math.floor(step * exact), math.floor((step + 1) * exact)
    return (before if after > before else None), before


def evenly_spaced(slices: int, count: int) -> NDArray[np.int64]:
    """Return ``count`` of the indices of ``slices`` slices, at the centers of equal parts."""
    return np.floor((np.arange(count) + 0.5) * slices / count).astype(np.int64)


@dataclass(frozen=True)
class _Study:
    """One sample of a batch.

    Attributes:
        images: (D, H, W) of every series, in the order of the sequence.
        block: index of the series that target and structures belong to.
        slices: (T,) slices of the target.
        target: of these slices.
    """

    encoded: Encoded
    images: list[Image]
    block: int
    slices: NDArray[np.int64]
    target: Target
    structures: StructureMap | None


class VolumeBatches:
    """Micro-batches of volumes and studies for one process.

    A micro-step draws ``volume_samples`` samples, of which process r takes the r-th share: content and depth of a micro-step do not
    depend on the number of processes.

    Args:
        samples: samples of a split.
        settings: of the stage.
        config: of the network.
        processor: tokenizer and padding.
        key: of the stage's random numbers.
        rank: this process.

    Raises:
        ValueError: the corpus has no instructions about volumes.
    """

    def __init__(
        self, samples: Samples, settings: StageSettings, config: OmniMRIConfig, processor: Processor, key: int, rank: Rank
    ) -> None:
        self.samples, self.settings, self.config, self.processor, self.rank = samples, settings, config, processor, rank
        self.key = [key, 3]
        self.mixture = samples.volume_mixture(key)

    def micro_batches(self, number: int) -> list[Any]:
        """Return the micro-batches of the step with this number (from 0) among those with volumes."""
        per_micro_step = self.settings.volume_samples_total(self.rank.world_size)
        per_step = per_micro_step * self.settings.gradient_accumulation
        draws = list(islice(self.mixture.draws(number * per_step), per_step))
        return [self._micro_batch(draws[first : first + per_micro_step]) for first in range(0, per_step, per_micro_step)]

    def _micro_batch(self, draws: Sequence[Draw]) -> SequenceBatch:
        records = [self.samples.volume_instructions[self._task(draw)][draw.index] for draw in draws]
        volumes = self.samples.corpus.volumes
        depth = min(volumes[volume_id].slices for record in records for volume_id in record.series)
        depth = min(depth, self.settings.volume_slices)
        share = len(draws) // self.rank.world_size
        own = slice(self.rank.index * share, (self.rank.index + 1) * share)
        studies = [self._study(record, draw, depth) for record, draw in zip(records[own], draws[own], strict=True)]
        tasks = tuple(TASKS)
        batch = self._collate(studies)
        task_B = torch.tensor([tasks.index(record.task) for record in records[own]])
        batch = replace(batch, seed_B=self._seeds(draws[own]), task_B=task_B, tasks=tasks)
        return with_structures(batch, self.samples, self.processor, [study.structures for study in studies])

    def _task(self, draw: Draw) -> str:
        return self.mixture.sources[draw.source].name

    def _seeds(self, draws: Sequence[Draw]) -> Tensor:
        hashes = [hashlib.blake2b(f"{self.key}/{draw.number}".encode(), digest_size=8).digest() for draw in draws]
        return torch.tensor([int.from_bytes(value, "big") >> 1 for value in hashes])

    def _study(self, record: VolumeInstructionRecord, draw: Draw, depth: int) -> _Study:
        """Read, augment and encode one sample."""
        rng = np.random.default_rng([*self.key, draw.number])
        block, task, store = record.series.index(record.volume_id), TASKS[record.task], self.samples.store
        volumes = [self.samples.corpus.volumes[volume_id] for volume_id in record.series]
        record = task.vary(record, volumes[block], np.random.default_rng([*self.key, draw.number, 2]))
        chosen = [evenly_spaced(volume.slices, depth) for volume in volumes]
        own, target = task.volume_input_and_target(record, store, chosen[block])
        images = [
            own if index == block else store.read(volume.volume_id, "voxels")[slices]
            for index, (volume, slices) in enumerate(zip(volumes, chosen, strict=True))
        ]
        structures = self.samples.structure_map(record)
        numbers = None if structures is None else structures.numbers[chosen[block]]
        targets = _target_slices(target, min(self.settings.volume_targets, depth), rng)
        target = target.slices(targets)
        response, affine = record.response, AffineParams.sample(rng)
        contrasts = [Contrast.sample(rng) for _ in images]
        if task.is_augmented:
            affine = replace(affine, scale=1.0) if task.states_sizes else affine
            if boxes := parse_boxes(response):
                affine = affine.keeping_inside(boxes)
                response = format_boxes(affine.transform_boxes(boxes))
            images = [contrast.apply(_moved(image, affine)) for image, contrast in zip(images, contrasts, strict=True)]
            if target.kind == TARGET_MASK:
                target = replace(target, image=_moved(target.image, affine, nearest=True))
            numbers = None if numbers is None else _moved(numbers.astype(np.float32), affine, nearest=True).astype(np.int64)
        labels = None if structures is None or numbers is None else replace(structures, numbers=numbers)
        omitted = rng.random() < HEADERS_OMITTED
        encoded = self._encode(record, response, images, [] if omitted else [HeaderFacts.of_record(v) for v in volumes])
        return _Study(encoded, images, block, targets, target, labels)

    def _encode(
        self, record: VolumeInstructionRecord, response: str, images: Sequence[Image], headers: Sequence[HeaderFacts]
    ) -> Encoded:
        """Encode the sequence: header facts stand before each series of a study, and before the instruction about one volume."""
        grid = self.config.image_grid(*images[0].shape)
        if len(images) == 1:
            question = headers[0].before(record.instruction) if headers else record.instruction
            return self.processor.encode_study(question, response, [Series(grid)])
        lines = [header.line for header in headers] or [""] * len(images)
        return self.processor.encode_study(record.instruction, response, [Series(grid, line) for line in lines])

    def _collate(self, studies: Sequence[_Study]) -> SequenceBatch:
        packed = self.processor.pack([study.encoded for study in studies])

        def stack(arrays: Sequence[Any]) -> Tensor:
            return torch.from_numpy(np.stack(arrays))

        measured = stack_measurements([study.target for study in studies])
        return SequenceBatch(
            input_ids_BL=packed.input_ids_BL,
            attention_mask_BL=packed.attention_mask_BL,
            labels_BL=packed.labels_BL,
            pixel_values_B1DHW=stack([image for study in studies for image in study.images])[:, None],
            visual_loss_B=torch.zeros(len(studies), dtype=torch.bool),
            target_B1DHW=stack([study.target.image for study in studies])[:, None],
            target_kind_B=torch.tensor([study.target.kind for study in studies]),
            kspace_BCDHW=measured.kspace_BCDHW,
            sampling_BDHW=measured.sampling_BDHW,
            coil_maps_BCDHW=measured.coil_maps_BCDHW,
            grids_BG3=packed.grids_BG3,
            block_B=torch.tensor([study.block for study in studies]),
            slices_BT=stack([study.slices for study in studies]),
        )


def _target_slices(target: Target, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the slices that teach the decoder, sorted: the first one shows the structure or finding, if any slice does."""
    order = rng.permutation(len(target.image))
    if target.kind != TARGET_NONE:
        shown = np.asarray(target.image.reshape(len(order), -1).any(-1))
        order = order[np.argsort(~shown[order], kind="stable")]
        order = np.concatenate([order[:1], rng.permutation(order[1:])])
    return np.sort(order[:count])


def _moved(image_DHW: Image, affine: AffineParams, nearest: bool = False) -> Image:
    """Resample every slice with the same transform."""
    return apply_affine_batch(image_DHW, [affine] * len(image_DHW), nearest)
