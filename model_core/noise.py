"""Random numbers of a batch: every sample has a generator of its own, so that a sample's noise is the same in whatever batch, on
whatever rank it is computed."""

from __future__ import annotations

import torch
from torch import Tensor


class Noise:
    """Draws for the samples of a batch, one after another.

    Args:
        seed_B: seeds, int64; None = PyTorch's own generator for all.
        count: samples.
        device: where the numbers are made. A GPU's are not a CPU's.
    """

    def __init__(self, seed_B: Tensor | None, count: int, device: torch.device) -> None:
        self.device = device
        seeds = [None] * count if seed_B is None else seed_B.tolist()
        self._generators = [None if seed is None else torch.Generator(device).manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32, normal."""
        return torch.stack([torch.randn(shape, generator=one, device=self.device) for one in self._generators])

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1)."""
        return torch.stack([torch.rand(shape, generator=one, device=self.device) for one in self._generators])

    def times(self, *shape: int, share_of_noise: float = 0.0) -> Tensor:
        """Times t = sigmoid(N(0, 1)) (Esser et al., arXiv:2403.03206), (B, *shape); a share of them is 1, pure noise."""
        times = self.normal(*shape).sigmoid()
        return torch.where(self.uniform(*shape) < share_of_noise, torch.ones_like(times), times)
