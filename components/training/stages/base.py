"""The interface of a training stage: objective, batches, figures and settings.

A stage of your own is a module with a subclass of :class:`Stage` and an instance of it, registered by a plugin::

    STAGES.add("distillation", "my_lab.distillation:STAGE")

A profile that mentions it under ``training:`` trains it after the four stages of the paper. Stage modules import the network and
PyTorch inside of their methods, because settings and command line look up their attributes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from components.settings import Category, StageSettings, TrainingSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from components.curation.corpus import Corpus
    from components.curation.table_rows import Split
    from components.training.batches import StageBatches
    from components.training.mixture import Draw
    from components.training.samples import Samples
    from model_core import OmniMRIForConditionalGeneration
    from model_core.batch import Batch
    from model_core.objectives import Objective
    from model_core.processing import Processor

ROUTER_PARTS = ("load_balance", "router_z")
"""Parts of the loss that every stage with a backbone has: the losses of the experts' router."""


class Stage(ABC):
    """One training stage.

    Attributes:
        name: key in the registry and under ``training:`` of a profile; it also keys the stage's random numbers.
        categories: categories of the data mixture that the stage can be trained on.
        loss_parts: parts of the loss that the figure of losses shows.
        contrastive: whether the losses compare the samples of a micro-step, of all processes, with each other.
        trains_backbone: whether the backbone is trained, by its adapters where the settings have some (``adapter_rank``).
        averages_decoder: whether the exported image decoder is the moving average of its weights (``decoder_average``).
        settings: class of the stage's settings; a subclass may add fields.
    """

    name: ClassVar[str]
    categories: ClassVar[tuple[Category, ...]]
    loss_parts: ClassVar[tuple[str, ...]]
    contrastive: ClassVar[bool] = False
    trains_backbone: ClassVar[bool] = True
    averages_decoder: ClassVar[bool] = False
    settings: ClassVar[type[StageSettings]] = StageSettings

    @abstractmethod
    def build_objective(self, model: OmniMRIForConditionalGeneration, settings: StageSettings) -> Objective:
        """Return the loss around a model, with the heads that only this stage trains."""

    @abstractmethod
    def collate(self, batches: StageBatches, draws: Sequence[Draw], step: int) -> Batch:
        """Return the micro-batch of this process: the samples that ``draws`` name, in step ``step`` (from 0)."""

    def select_samples(self, corpus: Corpus, split: Split) -> Samples:
        """Return the samples of a split that the stage draws from."""
        from components.training.samples import Samples

        return Samples.from_corpus(corpus, split)

    def select_draws(self, draws: Sequence[Draw], step: int, world_size: int) -> Sequence[Draw]:
        """Return those draws of a micro-step, of all processes, that are used in step ``step``; a multiple of ``world_size``."""
        return draws

    def teaches_structures(self, settings: StageSettings) -> bool:
        """Return whether the trained model can show every structure of the training data by its name."""
        return False

    def adapter_rank(self, training: TrainingSettings) -> int:
        """Return the rank of the backbone's adapters in this stage; 0 = there are none."""
        return training.adapter_rank if self.trains_backbone else 0

    def comparison_sizes(self, micro_batch_total: int, world_size: int) -> tuple[int, ...]:
        """Return how many samples the losses compare with each other, given those of a micro-step over all processes.

        The numbers are part of the stage's digest; they are empty where no samples are compared.
        """
        return (micro_batch_total,) if self.contrastive else ()

    def figures(self, objective: Objective, processor: Processor, samples: Samples) -> dict[str, Figure]:
        """Return figures of held-out samples for MLflow: file name -> figure. The objective is in evaluation mode."""
        return {}
