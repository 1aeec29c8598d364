"""Connector from Swin features to tokens of the backbone's width.

Shape letters: B samples, D, H, W token grid, N tokens, c channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model_core.config import OmniMRIConfig


def pool_depth(features_BDHWc: Tensor, factor: int) -> Tensor:
    """Average groups of ``factor`` slices (the last may be smaller), (B, ceil(D / factor), H, W, c). One slice is unchanged."""
    if features_BDHWc.shape[1] == 1:
        return features_BDHWc
    x = features_BDHWc.permute(0, 4, 1, 2, 3)
    return F.avg_pool3d(x, (factor, 1, 1), ceil_mode=True, count_include_pad=False).permute(0, 2, 3, 4, 1)


class Connector(nn.Module):
    """Depth pooling, then a two-layer perceptron."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        self.level, self.depth_pool = config.connector_level, config.depth_pool
        width = config.level_width(config.connector_level)
        self.mlp = nn.Sequential(nn.Linear(width, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size))

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map Swin features of all levels to tokens (B, N, hidden size)."""
        return self.mlp(pool_depth(features[self.level], self.depth_pool)).flatten(1, 3)
