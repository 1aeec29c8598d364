"""A training stage as a user would add one: instruction tuning on segmentation alone, with an L2 penalty on the text head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from components.curation.corpus import Corpus
from components.curation.table_rows import Split
from components.registries import STAGES
from components.settings import StageSettings
from components.training.batches import StageBatches
from components.training.mixture import Draw
from components.training.samples import Samples
from components.training.stages.base import ROUTER_PARTS, Stage
from model_core import OmniMRIForConditionalGeneration
from model_core.batch import Batch, SequenceBatch
from model_core.losses.reduction import Step
from model_core.objectives import InstructionTuning, LossOutput


class SegmentationSettings(StageSettings):
    penalty: float = Field(default=1e-3, ge=0, description="weight of the L2 penalty")


class PenalizedTuning(InstructionTuning):
    penalty = 0.0

    def forward(self, batch: SequenceBatch, step: Step | None = None) -> LossOutput:
        output = super().forward(batch, step)
        squared = self.penalty * self.model.lm_head.weight.float().square().mean()
        return replace(output, total=output.total + squared, parts={**output.parts, "l2": squared.detach()})


class SegmentationTuning(Stage):
    name = "segmentation_tuning"
    categories = ("instruction",)
    loss_parts = ("text", "mask", "l2", *ROUTER_PARTS)
    settings = SegmentationSettings

    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> PenalizedTuning:
        objective = PenalizedTuning(model)
        objective.penalty = settings.penalty  # type: ignore[attr-defined]
        return objective

    def select_samples(self, corpus: Corpus, split: Split) -> Samples:
        samples = Samples.from_corpus(corpus, split)
        kept = {task: records if task == "segmentation" else [] for task, records in samples.instructions.items()}
        return replace(samples, instructions=kept)

    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        return batches.sequence_batch(draws)


STAGE = SegmentationTuning()
STAGES.add("segmentation_tuning", f"{__name__}:STAGE")
