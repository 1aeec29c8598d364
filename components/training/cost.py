"""Cost of a step and peak speed of the machine: tokens, floating-point operations, operations per second.

Operations are those of the network (:mod:`model_core.accounting`), not of the machine: recomputation by activation checkpointing is
not counted, so that the share of the peak (MFU; Chowdhery et al., arXiv:2204.02311, appendix B) does not reward it.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch

from model_core.accounting import SampleSize, estimate_costs
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
"""Dense bfloat16 operations per second (float16 for V100), from the manufacturers' data sheets; the first matching name counts."""
TEXT_STEP = 64
"""Text lengths are rounded up to a multiple of this many tokens, so that few different lengths are computed."""


def batch_tokens(objective: Objective, batch: Any) -> int:
    """Return the tokens that the backbone processes, or, in a stage without it, the visual tokens."""
    if (mask := getattr(batch, "attention_mask_BL", None)) is not None:
        return int(mask.sum())
    return len(batch.pixel_values_B1DHW) * objective.model.image_tokens_for(*batch.pixel_values_B1DHW.shape[2:])


def batch_flops(objective: Objective, batch: Any) -> float:
    """Return the floating-point operations of forward and backward passes on a batch."""
    images, _, depth, height, width = batch.pixel_values_B1DHW.shape
    sequences = len(batch.input_ids_BL) if hasattr(batch, "input_ids_BL") else images
    visual = objective.model.image_tokens_for(depth, height, width) * images // sequences
    text = max(batch_tokens(objective, batch) // sequences - visual, 1)
    size = SampleSize(depth, height, width, -(-text // TEXT_STEP) * TEXT_STEP, -(-images // sequences))
    per_sample = _flops_by_part(objective.model.config, size)
    return sum(passes * per_sample[part] for part, passes in objective.passes(batch).items())


_CACHE: dict[tuple[int, SampleSize], dict[str, int]] = {}


def _flops_by_part(config: OmniMRIConfig, sample: SampleSize) -> dict[str, int]:
    key = (id(config), sample)
    if key not in _CACHE:
        _CACHE[key] = {cost.part: cost.flops for cost in estimate_costs(config, sample)}
    return _CACHE[key]


@cache
def peak_flops(precision: str) -> float:
    """Return the maximum operations per second of this process.

    On a known GPU in bfloat16 this is the value of the data sheet; on a CPU, or for another GPU or precision, it is measured as the
    fastest of ten products of large matrices.
    """
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    for model, peak in PEAKS.items():
        if model in name and precision == "bfloat16":
            return peak
    size, device = (8192, "cuda") if name else (1024, "cpu")
    matrix = torch.ones(size, size, dtype=getattr(torch, precision), device=device)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product = matrix @ matrix
        product[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
