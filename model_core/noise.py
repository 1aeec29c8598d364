"""Random numbers of a batch.

Every sample has its own generator, so that its noise is the same in every batch and on every rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Draw random numbers for the samples of a batch, one sample after another.

    Args:
        seed_B: seeds, int64; None = PyTorch's global generator for all samples.
        count: number of samples.
        device: device that generates the numbers. A GPU's numbers differ from a CPU's.
    """

    def __init__(self, seed_B: Tensor | None, count: int, device: torch.device) -> None:
        self.device = device
        seeds = [None] * count if seed_B is None else seed_B.tolist()
        self._generators = [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Draw from the standard normal distribution, (B, *shape) float32."""
        return torch.stack([torch.randn(shape, generator=generator, device=self.device) for generator in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniformly from [0, 1), (B, *shape) float32."""
        return torch.stack([torch.rand(shape, generator=generator, device=self.device) for generator in self._generators])

    def times(self, *shape: int, share_of_noise: float = 0.0) -> Tensor:
        """Draw times t = sigmoid(N(0, 1)) (Esser et al., arXiv:2403.03206), (B, *shape); a share of them is 1, pure noise."""
        times = self.normal(*shape).sigmoid()
        return torch.where(self.uniform(*shape) < share_of_noise, torch.ones_like(times), times)
