"""Stage 1: the encoder learns from images alone (section 4.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.settings import StageSettings
from components.training.stages.base import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from components.training.batches import StageBatches
    from components.training.mixture import Draw
    from components.training.samples import Samples
    from model_core import OmniMRIForConditionalGeneration
    from model_core.batch import Batch
    from model_core.objectives import Objective
    from model_core.processing import Processor

BLOCK_SLICES = 4
"""Slices of a block."""
BLOCK_EVERY = 4
"""Every fourth step uses blocks of slices, the other ones single slices: one encoder serves both."""


def is_block_step(step: int) -> bool:
    """Return whether a step (from 0) uses blocks of slices."""
    return step % BLOCK_EVERY == BLOCK_EVERY - 1


def block_samples(micro_batch_total: int, world_size: int) -> int:
    """Return how many blocks replace the single slices of a micro-step: a quarter, at least two, equally many per process."""
    return -(-max(micro_batch_total // BLOCK_SLICES, 2) // world_size) * world_size


class VisionPretrainingStage(Stage):
    """Masked image modeling, contrast of neighboring patches, discrimination of volumes."""

    name = "vision_pretraining"
    categories = ("image_only", "paired")
    loss_parts = ("masked_l1", "patch_contrast", "volume_contrast")
    contrastive = True
    trains_backbone = False

    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> Objective:
        """Return the objective of stage 1."""
        from model_core.objectives import VisionPretraining

        return VisionPretraining(model)

    def select_draws(self, draws: Sequence[Draw], step: int, world_size: int) -> Sequence[Draw]:
        """Return all draws, or fewer of them where each one is a block of slices."""
        return draws[: block_samples(len(draws), world_size)] if is_block_step(step) else draws

    def comparison_sizes(self, micro_batch_total: int, world_size: int) -> tuple[int, ...]:
        """Return the numbers of single slices and of blocks."""
        return micro_batch_total, block_samples(micro_batch_total, world_size)

    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        """Return single slices or blocks of slices, without text."""
        return batches.image_batch(draws, BLOCK_SLICES if is_block_step(step) else 1)

    def figures(self, objective: Objective, processor: Processor, samples: Samples) -> dict[str, Figure]:
        """Return held-out slices, their visible part, and the encoder's restoration."""
        from components.training.figures import masked_images
        from model_core.objectives import VisionPretraining

        assert isinstance(objective, VisionPretraining)
        return {"masked_images.png": masked_images(objective, samples)} if samples.slices else {}


STAGE = VisionPretrainingStage()
