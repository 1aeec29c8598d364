"""Base of the training objectives. Each objective wraps the model and contains the heads that only its stage needs.

Every batch on every rank touches every parameter of :meth:`Objective.trainable`, by a term of zero where there is nothing to learn:
DeepSpeed computes wrong gradients, or hangs, otherwise.

Losses are means over the whole optimizer step: :meth:`Objective.counts` returns in advance how many items of each kind a batch has,
and the losses of micro-batches and ranks add up. Contrastive losses and the router's losses are those of a micro-batch, on all
ranks.

Shape letters: E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from model_core.adapters import is_adapted
from model_core.losses.reduction import Step
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput

LOAD_BALANCE_WEIGHT, Z_LOSS_WEIGHT = 0.01, 1e-3


@dataclass(frozen=True)
class LossOutput:
    """The share of a micro-batch in the loss of an optimizer step.

    Attributes:
        total: scalar with a gradient.
        parts: terms for the metrics (detached, float32); they add up over micro-batches to the values of the step.
        tasks: task -> (sum of the losses of its samples, number of samples), of this rank.
        load_layers_E: tokens of all ranks by layer and expert.
    """

    total: Tensor
    parts: dict[str, Tensor]
    tasks: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    load_layers_E: Tensor | None = None


class Objective(nn.Module, ABC):
    """The loss of one stage."""

    def __init__(self, model: OmniMRIForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def modules_trained(self) -> list[nn.Module]:
        """Return the modules whose parameters this stage trains."""

    def trainable(self) -> list[nn.Parameter]:
        """Freeze all parameters, unfreeze those of this stage, and return the latter without repeats (tied weights are one).

        Weights that adapters stand in for (:mod:`model_core.adapters`) remain frozen.
        """
        self.requires_grad_(False)
        parameters: dict[int, nn.Parameter] = {}
        for module in self.modules_trained():
            for name, parameter in module.named_parameters():
                if not is_adapted(name):
                    parameter.requires_grad_(True)
                    parameters.setdefault(id(parameter), parameter)
        return list(parameters.values())

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """Return loss name -> number of items of the batch over which that loss is averaged."""
        return {}

    @abstractmethod
    def passes(self, batch: Any) -> dict[str, float]:
        """Return the cost of a batch in forward passes of one sample, by module; a backward pass counts as two.

        The keys are the modules of :class:`model_core.accounting.Cost`.
        """

    def begin(self, batches: Iterator[Any]) -> None:
        """Fit statistics of the training data before the first step. ``batches`` are those of this stage, from its start."""


def build_loss_output(total: Tensor, output: OmniMRIOutput | None = None, **parts: Tensor) -> LossOutput:
    """Detach the terms of a loss, and add the load of the experts if the backbone was run."""
    load = output.backbone.counts_layers_E if output is not None and output.backbone is not None else None
    return LossOutput(total, {name: part.detach().float() for name, part in parts.items()}, load_layers_E=load)


def router_loss(output: OmniMRIOutput, step: Step) -> Tensor:
    """Return the weighted sum of the router's load-balance and z-losses."""
    assert output.backbone is not None
    return step.part(LOAD_BALANCE_WEIGHT * output.backbone.load_balance_loss + Z_LOSS_WEIGHT * output.backbone.z_loss)


def router_parts(output: OmniMRIOutput, step: Step) -> dict[str, Tensor]:
    """Return the router's losses, and the load of the busiest expert relative to an even load."""
    assert output.backbone is not None
    counts = output.backbone.counts_layers_E.float()
    busiest = (counts / counts.mean(-1, keepdim=True).clamp(min=1)).max()
    return {
        "load_balance": step.part(output.backbone.load_balance_loss),
        "router_z": step.part(output.backbone.z_loss),
        "busiest_expert": step.part(busiest),
    }
