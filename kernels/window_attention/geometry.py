"""Geometry of attention windows on a token grid: partition, cyclic shift, padding, regions, relative positions.

Shape letters: B samples, D H W the token grid, c channels, N tokens of a window, n windows of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Triple = tuple[int, int, int]


def bias_table_rows(window: Triple) -> int:
    """Return the number of rows of the relative-position bias table: one per relative offset within a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)


def fit_window(size: Triple, window: Triple, shift: Triple) -> tuple[Triple, Triple]:
    """Return window and shift as applied: an axis that one window covers is neither partitioned nor shifted (Video Swin)."""
    used = tuple(min(length, side) for length, side in zip(size, window, strict=True))
    moved = tuple(0 if length <= side else step for length, side, step in zip(size, window, shift, strict=True))
    return (used[0], used[1], used[2]), (moved[0], moved[1], moved[2])


def padded_grid(size: Triple, used: Triple) -> Triple:
    """Return the grid, padded at its end to multiples of the window."""
    depth, height, width = (length + -length % side for length, side in zip(size, used, strict=True))
    return depth, height, width


def partition(x_BDHWc: Tensor, used: Triple) -> Tensor:
    """Partition (B, D, H, W, c) into windows (B * n, N, c)."""
    batch, depth, height, width, channels = x_BDHWc.shape
    split = x_BDHWc.view(batch, depth // used[0], used[0], height // used[1], used[1], width // used[2], used[2], channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, used[0] * used[1] * used[2], channels)


def reverse(x_nNc: Tensor, used: Triple, batch: int, grid: Triple) -> Tensor:
    """Reverse :func:`partition`: (B * n, N, c) -> (B, D, H, W, c)."""
    counts = [length // side for length, side in zip(grid, used, strict=True)]
    split = x_nNc.view(batch, *counts, *used, -1)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *grid, -1)


def position_codes_N(window: Triple, used: Triple) -> Tensor:
    """Return a code for each token of a window: ``code[query] - code[key]`` + :func:`middle_row` is the row of the bias table.

    A window clipped to the grid reads the middle of the table.
    """
    axes = torch.meshgrid(*[torch.arange(side) for side in used], indexing="ij")
    depth, row, column = (axis.flatten() for axis in axes)
    return (depth * (2 * window[1] - 1) + row) * (2 * window[2] - 1) + column


def middle_row(window: Triple) -> int:
    """Return the row of the bias table for a token and itself."""
    return bias_table_rows(window) // 2


def regions_nN(grid: Triple, used: Triple, moved: Triple) -> Tensor:
    """Return the region of every token of every rolled window; tokens attend only within their region."""
    region = torch.zeros(grid, dtype=torch.long)
    for axis, (length, side, step) in enumerate(zip(grid, used, moved, strict=True)):
        if step:
            position = torch.arange(length)
            band = (position >= length - side).long() + (position >= length - step).long()
            shape = [1, 1, 1]
            shape[axis] = length
            region = region * 3 + band.view(shape)
    return partition(region[None, ..., None], used).squeeze(-1)


@dataclass(frozen=True, eq=False)
class Geometry:
    """Position tables of all windows: address arithmetic instead of rolled and partitioned tensors.

    Attributes:
        rows_nN: int32, token at each position within its sample, -1 for padding.
        codes_N: int32 :func:`position_codes_N`, the same for all windows.
        regions_nN: int32 :func:`regions_nN`; one row of zeros if no window is shifted.
        window: size in the bias table; used: size on the grid, smaller where the grid is.
        padded: some positions are padding; shifted: some pairs are masked.
    """

    rows_nN: Tensor
    codes_N: Tensor
    regions_nN: Tensor
    window: Triple
    used: Triple
    padded: bool
    shifted: bool


@lru_cache(maxsize=16)
def geometry(size: Triple, window: Triple, shift: Triple, device: torch.device) -> Geometry:
    """Return the geometry of a grid of ``size`` tokens (D, H, W). Cached: call it outside of tracing only."""
    used, moved = fit_window(size, window, shift)
    grid = padded_grid(size, used)
    tokens = torch.full(grid, -1)
    tokens[: size[0], : size[1], : size[2]] = torch.arange(size[0] * size[1] * size[2]).view(size)
    rolled = tokens.roll([-step for step in moved], dims=(0, 1, 2))
    codes = position_codes_N(window, used)
    regions = regions_nN(grid, used, moved) if any(moved) else torch.zeros_like(codes)[None]
    return Geometry(
        rows_nN=partition(rolled[None, ..., None], used).squeeze(-1).int().contiguous().to(device),
        codes_N=codes.int().contiguous().to(device),
        regions_nN=regions.int().contiguous().to(device),
        window=window,
        used=used,
        padded=grid != size,
        shifted=any(moved),
    )
