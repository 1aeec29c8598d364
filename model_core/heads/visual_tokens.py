"""Prediction of the next visual token without a codebook: a per-token flow-matching head (MAR, Li et al., arXiv:2406.11838).

Shape letters: B samples, N visual tokens, M tokens in the loss, z visual target size, w width of the head, p position features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.config import OmniMRIConfig, Triple
from model_core.heads.connector import pool_depth
from model_core.heads.modulated import TimeEmbedding, ZeroLinear, sinusoids


class VisualTarget(nn.Module):
    """Prediction target: the Swin features of the connector's level, normalized and PCA-whitened to ``visual_target_size`` numbers.

    Whitening fixes the scale of the target, so that neither it nor the encoder can collapse. It is fitted once on training images,
    after the pretraining of the encoder, and stored in buffers.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        self.level, self.depth_pool = config.connector_level, config.depth_pool
        width = config.level_width(config.connector_level)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width)[:, : config.visual_target_size].contiguous())

    def _normalize(self, features: list[Tensor]) -> Tensor:
        pooled = pool_depth(features[self.level], self.depth_pool).flatten(1, 3).float()
        return F.layer_norm(pooled, pooled.shape[-1:])

    @torch.no_grad()
    def fit(self, batches: Sequence[list[Tensor]]) -> None:
        """Compute mean and whitening from the features of batches of training images, every level."""
        rows = torch.cat([self._normalize(features).flatten(0, 1) for features in batches]).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1))
        size = self.whitening.shape[1]
        strongest, directions = values[-size:].flip(0), vectors[:, -size:].flip(1)
        # The sign of an eigenvector is arbitrary; fix it, so that every machine has the same target.
        directions = directions * directions[directions.abs().argmax(0), torch.arange(size)].sign()
        floor = strongest[0].clamp(min=1e-12) * 1e-4  # do not amplify directions without variance to noise
        self.mean.copy_(mean)
        self.whitening.copy_(directions / strongest.clamp(min=floor).sqrt())

    @torch.no_grad()
    def forward(self, features: list[Tensor]) -> Tensor:
        """Map Swin features to whitened targets (B, N, z), float32."""
        return (self._normalize(features) - self.mean.float()) @ self.whitening.float()


class _Block(nn.Module):
    """Residual perceptron with a norm that the condition modulates."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = ZeroLinear(width, 3 * width)

    def forward(self, x_Mw: Tensor, condition_Mw: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition_Mw)).chunk(3, -1)
        return x_Mw + gate * self.mlp(self.norm(x_Mw) * (1 + scale) + shift)


class VisualTokenHead(nn.Module):
    """Velocity of the flow from visual token (t = 0) to noise (t = 1), given the hidden state before it and its position."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        width, target = config.flow_width, config.visual_target_size
        self.target_size, self.feature_count = target, 16
        self.input = nn.Linear(target, width)
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(config.hidden_size + 3 * self.feature_count, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.flow_depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.output = ZeroLinear(width, target)

    def position_features(self, grid: Triple, device: torch.device) -> Tensor:
        """Return features (N, p) of the positions of the tokens in the grid."""
        axes = [torch.arange(size, device=device) / 64.0 for size in grid]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
        return sinusoids(coordinates, self.feature_count).flatten(1)

    def forward(self, noisy_Mz: Tensor, time_M: Tensor, hidden_MH: Tensor, position_Mp: Tensor) -> Tensor:
        """Predict the velocity (M, z), float32."""
        dtype = self.input.weight.dtype
        condition = self.condition(torch.cat([hidden_MH, position_Mp.to(hidden_MH.dtype)], -1)) + self.time(time_M)
        x = self.input(noisy_Mz.to(dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.output(self.norm(x)).float()
