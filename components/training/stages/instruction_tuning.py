"""Stage 4: the whole network answers instructions of all tasks (section 4.4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from components.settings import StageSettings
from components.training.stages.base import ROUTER_PARTS, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from components.training.batches import StageBatches
    from components.training.mixture import Draw
    from components.training.samples import Samples
    from model_core import OmniMRIForConditionalGeneration
    from model_core.batch import Batch
    from model_core.objectives import Objective
    from model_core.processing import Processor


class InstructionTuningSettings(StageSettings):
    """Settings of stage 4."""

    structure_weight: float = Field(
        default=1.0, ge=0, description="weight of the auxiliary losses of all labeled structures on every labeled sample"
    )


class InstructionTuningStage(Stage):
    """Responses in text, and target images and masks through the image decoder."""

    name = "instruction_tuning"
    categories = ("paired", "instruction")
    loss_parts = ("text", "image", "mask", "structures", *ROUTER_PARTS)
    averages_decoder = True
    settings = InstructionTuningSettings

    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> Objective:
        """Return the objective of stage 4."""
        from model_core.objectives import InstructionTuning

        assert isinstance(settings, InstructionTuningSettings)
        return InstructionTuning(model, settings.structure_weight)

    def teaches_structures(self, settings: StageSettings) -> bool:
        """Return whether the auxiliary losses of structures are on."""
        return isinstance(settings, InstructionTuningSettings) and settings.structure_weight > 0

    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        """Return token sequences of instructions with their target images."""
        return batches.sequence_batch(draws)

    def figures(self, objective: Objective, processor: Processor, samples: Samples) -> dict[str, Figure]:
        """Return held-out outputs of the image decoder beside their targets."""
        from components.training.figures import decoded_images, decoded_tasks

        if not any(samples.instructions[task] for task in decoded_tasks()):
            return {}
        return {"decoded_images.png": decoded_images(objective, processor, samples)}


STAGE = InstructionTuningStage()
