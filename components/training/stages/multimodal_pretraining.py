"""Stage 3: the backbone predicts the next token, whether text or visual (section 4.3 of the paper)."""

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


class MultimodalPretrainingStage(Stage):
    """Next-token prediction on image-text pairs in either order and on instructions; the encoder is frozen."""

    name = "multimodal_pretraining"
    categories = ("paired", "instruction")
    loss_parts = ("text", "visual", *ROUTER_PARTS)

    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> Objective:
        """Return the objective of stage 3."""
        from model_core.objectives import MultimodalPretraining

        return MultimodalPretraining(model)

    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        """Return token sequences of pairs and instructions."""
        return batches.sequence_batch(draws)


STAGE = MultimodalPretrainingStage()
