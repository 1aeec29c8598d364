"""Means over all samples of an optimizer step, independent of their distribution over ranks and micro-batches.

DeepSpeed averages gradients over ranks, and the gradients of micro-batches add up. A mean over *tokens* of the whole step therefore
needs their total count before the first micro-batch is computed: each micro-batch divides its own sum by the total count and
multiplies by the number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of training processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the index of this process among the training processes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over all ranks, without a gradient, in the dtype of the input."""
    values = values.detach().clone()
    if world_size() > 1:
        dist.all_reduce(values)
    return values


@dataclass(frozen=True)
class Step:
    """Normalization of the losses of an optimizer step over all its ranks and micro-batches.

    Attributes:
        counts: loss name -> number of items over which the loss is averaged, float32 scalars.
        micro_batches: number of micro-batches of this rank in the step.
    """

    counts: Mapping[str, Tensor]
    micro_batches: int = 1

    @classmethod
    def of(cls, counts: Sequence[Mapping[str, Tensor]]) -> Step:
        """Sum the counts of the micro-batches of all ranks."""
        names = list(counts[0])
        if not names:
            return cls({}, len(counts))
        stacked = torch.stack([torch.stack([micro_batch[name].float() for name in names]) for micro_batch in counts])
        return cls(dict(zip(names, all_reduce_sum(stacked.sum(0)), strict=True)), len(counts))

    def mean(self, name: str, total: Tensor) -> Tensor:
        """Return the share of this micro-batch in the mean over the whole step; zero if the count of the step is zero."""
        return total * world_size() / self.counts[name].clamp(min=1)

    def part(self, value: Tensor) -> Tensor:
        """Return the share of this micro-batch in the mean over micro-batches, for values that are not means over counted items."""
        return value / self.micro_batches


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Gather the rows of all ranks, in the order of the ranks; gradients flow back to the rank of each row."""
    if world_size() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))
