"""Stage 2: images and descriptions meet in one space (section 4.2 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from components.settings import StageSettings
from components.training.stages.base import ROUTER_PARTS, Stage

if TYPE_CHECKING:
    from components.training.batches import StageBatches
    from components.training.mixture import Draw
    from model_core import OmniMRIForConditionalGeneration
    from model_core.batch import Batch
    from model_core.objectives import Objective


class AlignmentStage(Stage):
    """Contrast of slices and the descriptions of their volumes; the encoder is frozen."""

    name = "alignment"
    categories = ("paired",)
    loss_parts = ("contrast", *ROUTER_PARTS)
    contrastive = True

    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> Objective:
        """Return the objective of stage 2."""
        from model_core.objectives import Alignment

        return Alignment(model)

    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        """Return slices with the descriptions of their volumes."""
        return batches.paired_batch(draws)


STAGE = AlignmentStage()
