"""Connector from Swin features to tokens of the backbone's width.

Shape letters: B samples, D, H, W token grid, N tokens, c channels, f frequencies.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.config import OmniMRIConfig, Triple


def pool_depth(features_BDHWc: Tensor, factor: int) -> Tensor:
    """Average groups of ``factor`` slices (the last may be smaller), (B, ceil(D / factor), H, W, c). One slice is unchanged."""
    if features_BDHWc.shape[1] == 1:
        return features_BDHWc
    x = features_BDHWc.permute(0, 4, 1, 2, 3).float()  # in bfloat16, PyTorch has no pooling on a CPU
    pooled = F.avg_pool3d(x, (min(factor, x.shape[2]), 1, 1), ceil_mode=True, count_include_pad=False)
    return pooled.to(features_BDHWc.dtype).permute(0, 2, 3, 4, 1)


def position_code(grid: Triple, frequencies: int, device: torch.device) -> Tensor:
    """Return sines and cosines of slice, row and column of every cell of a grid, (D, H, W, 6 f) float32.

    A position is that of the cell's center, 0 to 1 along the axis: the single slice of a plane image is at one half. The
    frequencies are pi / 2, pi, 2 pi, ...
    """
    axes = []
    for axis, size in enumerate(grid):
        position = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) / size
        angle = position[:, None] * (math.pi * 2.0 ** (torch.arange(frequencies, device=device, dtype=torch.float32) - 1))
        shape = [1, 1, 1, 2 * frequencies]
        shape[axis] = size
        axes.append(torch.cat([angle.sin(), angle.cos()], -1).view(shape).expand(*grid, -1))
    return torch.cat(axes, -1)


class Connector(nn.Module):
    """Depth pooling, then a two-layer perceptron, to whose tokens a code of their position is added."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        self.level, self.depth_pool = config.connector_level, config.depth_pool
        self.frequencies = config.position_frequencies
        width = config.level_width(config.connector_level)
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size))
        self.position = nn.Linear(6 * self.frequencies, config.hidden_size, bias=False) if self.frequencies else None

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map Swin features of all levels to tokens (B, N, hidden size)."""
        tokens = self.mlp(pool_depth(features[self.level], self.depth_pool))
        if self.position is not None:
            depth, height, width = tokens.shape[1:4]
            tokens = tokens + self.position(position_code((depth, height, width), self.frequencies, tokens.device).to(tokens.dtype))
        return tokens.flatten(1, 3)
