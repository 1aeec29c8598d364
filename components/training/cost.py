"""What a step costs and what the machine could do: tokens, floating-point operations, and the peak that they are compared with.

Operations are those of the network (:mod:`model_core.accounting`), not of the machine: what activation checkpointing computes twice
counts once, so that the share of the peak (MFU; Chowdhery et al., arXiv:2204.02311, appendix B) rewards no waste.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from model_core.accounting import SampleSize, costs
from model_core.config import OmniMRIConfig
from model_core.objectives import Objective

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "MI300X": 1307e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "V100": 125e12,
}
"""Dense bfloat16 operations a second (float16 for V100), from the makers' data sheets; the first name that fits."""
TEXT_STEP = 64
"""Texts are counted by this many tokens, so that few lengths are ever costed."""


def batch_tokens(objective: Objective, batch: Any) -> int:
    """Tokens that the backbone sees, or, in a stage without it, visual tokens."""
    if (mask := getattr(batch, "attention_mask_BL", None)) is not None:
        return int(mask.sum())
    return len(batch.pixel_values_B1DHW) * objective.model.image_tokens_for(*batch.pixel_values_B1DHW.shape[2:])


def batch_flops(objective: Objective, batch: Any) -> float:
    """Operations of forward and backward on a batch."""
    samples, _, depth, height, width = batch.pixel_values_B1DHW.shape
    length = batch_tokens(objective, batch) // samples
    text = max(length - objective.model.image_tokens_for(depth, height, width), 1)
    each = _by_part(objective.model.config, SampleSize(depth, height, width, -(-text // TEXT_STEP) * TEXT_STEP))
    return sum(passes * each[part] for part, passes in objective.passes(batch).items())


_KNOWN: dict[tuple[int, SampleSize], dict[str, int]] = {}


def _by_part(config: OmniMRIConfig, sample: SampleSize) -> dict[str, int]:
    key = (id(config), sample)
    if key not in _KNOWN:
        _KNOWN[key] = {cost.part: cost.flops for cost in costs(config, sample)}
    return _KNOWN[key]


@cache
def peak_flops(precision: str) -> float:
    """Operations a second that this process could do at best: by its GPU's data sheet, or, on a CPU or for a GPU or precision that
    is not in the table, by the fastest of ten products of large matrices here and now."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for model, peak in PEAKS.items():
        if model in name and precision == "bfloat16":
            return peak
    size, device = (8192, "cuda") if name else (1536, "cpu")
    matrix = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
