"""Means over all ranks.

DeepSpeed averages gradients over ranks. A mean over *tokens* of all ranks therefore needs the global count: each rank divides its
own sum by it and multiplies by the number of ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def ranks() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """``total`` of this rank over the count of all ranks, scaled so that the average over ranks is the global mean.

    Zero where nothing was counted anywhere.
    """
    everywhere = count.detach().float().clone()
    if ranks() > 1:
        dist.all_reduce(everywhere)
    return total * ranks() / everywhere.clamp(min=1)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all ranks, in the order of the ranks; gradients flow back to the rank that a row came from."""
    if ranks() == 1:
        return rows
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(rows.contiguous()))
