"""Next-visual-token prediction without a codebook: a per-token flow-matching head (MAR, Li et al., arXiv:2406.11838).

Shape letters: B samples, N visual tokens, M tokens in the loss, z visual target size, c channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.config import OmniMRIConfig, Triple
from model_core.heads.connector import pool_depth
from model_core.heads.modulated import TimeEmbedding, ZeroLinear, sinusoids


class VisualTarget(nn.Module):
    """What is predicted: the Swin features of the connector's level, normalised and PCA-whitened to ``visual_target_size`` numbers.

    Whitening keeps the target's scale fixed, so that neither it nor the encoder can collapse. It is fitted once, on training
    images, when the encoder has been pretrained, and kept as buffers.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        self.level, self.depth_pool = config.connector_level, config.depth_pool
        width = config.level_width(config.connector_level)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("whitening", torch.eye(width)[:, : config.visual_target_size].contiguous())

    def _normalised(self, features: list[Tensor]) -> Tensor:
        pooled = pool_depth(features[self.level], self.depth_pool).flatten(1, 3).float()
        return F.layer_norm(pooled, pooled.shape[-1:])

    @torch.no_grad()
    def fit(self, features: list[Tensor]) -> None:
        """Set mean and whitening from the features of some training images."""
        rows = self._normalised(features).flatten(0, 1).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1))
        kept = self.whitening.shape[1]
        strongest, directions = values[-kept:].flip(0), vectors[:, -kept:].flip(1)
        # The sign of an eigenvector is arbitrary; fix it, so that every machine has the same target.
        directions = directions * directions[directions.abs().argmax(0), torch.arange(kept)].sign()
        floor = strongest[0].clamp(min=1e-12) * 1e-4  # directions without variance must not be blown up to noise
        self.mean.copy_(mean)
        self.whitening.copy_(directions / strongest.clamp(min=floor).sqrt())

    @torch.no_grad()
    def forward(self, features: list[Tensor]) -> Tensor:
        """Swin features -> (B, N, z) float32."""
        return (self._normalised(features) - self.mean.float()) @ self.whitening.float()


class _Block(nn.Module):
    """Residual perceptron whose norm is modulated by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = ZeroLinear(width, 3 * width)

    def forward(self, x_Mw: Tensor, condition_Mw: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition_Mw)).chunk(3, -1)
        return x_Mw + gate * self.mlp(self.norm(x_Mw) * (1 + scale) + shift)


class VisualTokenHead(nn.Module):
    """Velocity of the flow from visual token (t = 0) to noise (t = 1), given the hidden state before it and its place."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        width, target = config.flow_width, config.visual_target_size
        self.target_size, self.place_features = target, 16
        self.input = nn.Linear(target, width)
        self.time = TimeEmbedding(width)
        self.condition = nn.Linear(config.hidden_size + 3 * self.place_features, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(config.flow_depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.output = ZeroLinear(width, target)

    def position_features(self, grid: Triple, device: torch.device) -> Tensor:
        """Features (N, 3 * place_features) of the tokens' places in the grid."""
        axes = [torch.arange(size, device=device) / 64.0 for size in grid]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
        return sinusoids(coordinates, self.place_features).flatten(1)

    def forward(self, noisy_Mz: Tensor, time_M: Tensor, hidden_MH: Tensor, place_Mp: Tensor) -> Tensor:
        """Velocity (M, z) in float32."""
        dtype = self.input.weight.dtype
        condition = self.condition(torch.cat([hidden_MH, place_Mp.to(hidden_MH.dtype)], -1)) + self.time(time_M)
        x = self.input(noisy_Mz.to(dtype))
        for block in self.blocks:
            x = block(x, condition)
        return self.output(self.norm(x)).float()
