"""Flow matching from noise (t = 1) to data (t = 0): the training path, and the samplers.

``y_t = (1 - t) y_0 + t eps`` (Lipman et al., arXiv:2210.02747), with the velocity ``dy/dt = eps - y_0``. Times are those of
diffusers' flow-matching schedulers without shift: evenly spaced from 1, the last step ends at 0.

Shape letters: K draws, B samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Sampler = Literal["euler", "heun"]
SAMPLERS: tuple[Sampler, ...] = ("euler", "heun")


def interpolate(clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
    """Return the point of the path at the time of each sample, (B, ...)."""
    time = time_B.view(-1, *[1] * (clean.ndim - 1))
    return (1 - time) * clean + time * noise


def sample_noise(seeds: Sequence[int], shape: Sequence[int], draws: int = 1) -> Tensor:
    """Draw normal noise (K, B, *shape), float32, on the CPU.

    Every sample has its own generator: its noise depends on its seed alone, not on its index, on the other samples, on the
    device or on the number of draws.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.stack([torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]) for _ in range(draws)])


def integrate(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, steps: int, sampler: Sampler = "euler") -> Tensor:
    """Integrate the velocity from noise to data.

    Args:
        velocity: (state, time) -> ``dy/dt``, of the state's shape.
        noise: the state at t = 1.
        steps: number of steps of equal length.
        sampler: ``euler`` evaluates one velocity per step. ``heun`` averages the velocities at both ends of a step, except for the
            last step, at whose end the velocity of a predicted clean target is undefined (0 / 0).

    Raises:
        ValueError: fewer than one step, or an unknown sampler.
    """
    if steps < 1 or sampler not in SAMPLERS:
        raise ValueError(f"{steps} steps of {sampler!r}: at least one step of {' or '.join(SAMPLERS)}")
    state = noise
    for step in range(steps, 0, -1):
        time, following = step / steps, (step - 1) / steps
        slope = velocity(state, time)
        if sampler == "heun" and step > 1:
            slope = (slope + velocity(state + (following - time) * slope, following)) / 2
        state = state + (following - time) * slope
    return state
