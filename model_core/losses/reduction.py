"""Means over all samples of an optimizer step, however they are shared out over ranks and micro-batches.

DeepSpeed averages gradients over ranks, and micro-batches add up. A mean over *tokens* of the whole step therefore needs the count
of all of them, before the first is computed: each micro-batch divides its own sum by it and multiplies by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all ranks, without a gradient, in the input's type."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@dataclass(frozen=True)
class Step:
    """What all ranks and micro-batches of an optimizer step have together.

    Attributes:
        counts: name -> number of whatever a loss is a mean of, float32 scalars.
        micro_batches: how many of them add up to the step.
    """

    counts: Mapping[str, Tensor]
    micro_batches: int = 1

    @classmethod
    def of(cls, counts: Sequence[Mapping[str, Tensor]]) -> Step:
        """Add up the counts of this rank's micro-batches, and those of all ranks."""
        names = list(counts[0])
        if not names:
            return cls({}, len(counts))
        stacked = torch.stack([torch.stack([one[name].float() for name in names]) for one in counts])
        return cls(dict(zip(names, all_reduce_sum(stacked.sum(0)), strict=True)), len(counts))

    def mean(self, name: str, total: Tensor) -> Tensor:
        """This micro-batch's part of the mean over the whole step; zero where nothing was counted anywhere."""
        return total * world_size() / self.counts[name].clamp(min=1)

    def part(self, value: Tensor) -> Tensor:
        """This micro-batch's part of a mean over micro-batches, for what is no mean of countable things."""
        return value / self.micro_batches


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks; gradients flow back to the rank that a row came from."""
    if world_size() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))
