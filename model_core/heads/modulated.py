"""Layers of both flow-matching heads: time embedding and zero-initialized modulation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoids(values: Tensor, size: int, largest: float = 1e4) -> Tensor:
    """Return sine and cosine features (..., size) of values in [0, 1]: times, or positions divided by their maximum."""
    frequency = torch.exp(-math.log(largest) * torch.arange(size // 2, device=values.device, dtype=torch.float32) / (size // 2))
    angle = values.float()[..., None] * 1000.0 * frequency
    return torch.cat([angle.cos(), angle.sin()], -1)


class TimeEmbedding(nn.Module):
    """Embedding of times in [0, 1]."""

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.input = nn.Linear(features, width)
        self.output = nn.Linear(width, width)

    def forward(self, time: Tensor) -> Tensor:
        """Map times of any shape (...) to (..., width)."""
        return self.output(F.silu(self.input(sinusoids(time, self.features).to(self.input.weight.dtype))))


class ZeroLinear(nn.Linear):
    """Linear layer with zero initialization, so that a modulated block starts as the identity (adaLN-Zero, arXiv:2212.09748)."""


class ZeroConv2d(nn.Conv2d):
    """Convolution with zero initialization, so that the first prediction of the head is "no change"."""
