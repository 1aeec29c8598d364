"""Shifted window attention in 2-D and 3-D with a trainable relative-position bias (Liu et al., Swin / Video Swin Transformer).

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample.

This is the plain PyTorch form, the specification of the operation. It keeps an (n, h, N, N) tensor of scores in memory, which
for the windows of up to 144 tokens that the small presets use is the fastest way to train on a CPU.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]


def bias_table_rows(window: Triple) -> int:
    """Rows of the relative-position bias table: one per relative offset inside a window."""
    return (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)


def fitted(grid: Triple, window: Triple, shift: Triple) -> tuple[Triple, Triple]:
    """Window and shift as used: an axis that one window covers is not cut further, and then not shifted (Video Swin)."""
    used = tuple(min(size, side) for size, side in zip(grid, window, strict=True))
    moved = tuple(0 if size <= side else step for size, side, step in zip(grid, window, shift, strict=True))
    return (used[0], used[1], used[2]), (moved[0], moved[1], moved[2])


@lru_cache(maxsize=64)
def _relative_index_NN(window: Triple, used: Triple) -> Tensor:
    """Row of the bias table for every (query, key) pair of a window; a clipped window reads the middle of the table."""
    axes = [torch.arange(side) for side in used]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    offset = coordinates[:, :, None] - coordinates[:, None, :] + torch.tensor(window).view(3, 1, 1) - 1
    spans = [2 * side - 1 for side in window]
    return (offset[0] * spans[1] + offset[1]) * spans[2] + offset[2]


@lru_cache(maxsize=64)
def _region_mask_nNN(grid: Triple, used: Triple, moved: Triple) -> Tensor:
    """True where query and key of a rolled window come from the same region (they may attend), (n, N, N)."""
    region = torch.zeros(grid, dtype=torch.long)
    for axis, (size, side, step) in enumerate(zip(grid, used, moved, strict=True)):
        if step:
            position = torch.arange(size)
            band = (position >= size - side).long() + (position >= size - step).long()
            shape = [1, 1, 1]
            shape[axis] = size
            region = region * 3 + band.view(shape)
    cells = _partition(region[None, ..., None], used).squeeze(-1)
    return cells[:, :, None] == cells[:, None, :]


def _partition(x_BDHWc: Tensor, used: Triple) -> Tensor:
    """(B, D, H, W, c) -> (B * n, N, c)."""
    batch, depth, height, width, channels = x_BDHWc.shape
    split = x_BDHWc.view(batch, depth // used[0], used[0], height // used[1], used[1], width // used[2], used[2], channels)
    return split.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, used[0] * used[1] * used[2], channels)


def _reverse(x_nNc: Tensor, used: Triple, batch: int, grid: Triple) -> Tensor:
    """(B * n, N, c) -> (B, D, H, W, c)."""
    counts = [size // side for size, side in zip(grid, used, strict=True)]
    split = x_nNc.view(batch, *counts, *used, -1)
    return split.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *grid, -1)


def window_attention(
    qkv_BDHW3hd: Tensor, bias_table: Tensor, window: Triple, shift: Triple, pad_qkv: Tensor | None = None
) -> Tensor:
    """Attention inside (shifted) windows of a token grid.

    A grid that the window does not divide is padded at its far end. Padded tokens take part as keys and values, as in Swin, which
    pads after the layer norm: ``pad_qkv`` is what they are (the bias of the qkv projection); without it they are zero.

    Args:
        qkv_BDHW3hd: packed queries, keys and values.
        bias_table: (rows of :func:`bias_table_rows`, h), added to the scores, receives gradients.
        window: window size; shift: cyclic shift, 0 <= shift < window, on each of (D, H, W).
        pad_qkv: (3, h, d).

    Returns:
        (B, D, H, W, h * d).

    Raises:
        ValueError: bias table or shift do not fit the window.
    """
    batch, *size, _, heads, head_dim = qkv_BDHW3hd.shape
    if bias_table.shape != (bias_table_rows(window), heads):
        raise ValueError(f"bias table is {tuple(bias_table.shape)}, window {window} with {heads} heads needs "
                         f"{(bias_table_rows(window), heads)}")  # fmt: skip
    if any(not 0 <= step < side for step, side in zip(shift, window, strict=True)):
        raise ValueError(f"shift {shift} must be at least 0 and below the window {window}")
    used, moved = fitted((size[0], size[1], size[2]), window, shift)
    x, grid = _padded(qkv_BDHW3hd.flatten(4), used, pad_qkv)
    if any(moved):
        x = x.roll([-step for step in moved], dims=(1, 2, 3))
    q, k, v = _partition(x, used).unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)  # each (B n, h, N, d)
    index = _relative_index_NN(window, used).to(x.device)
    bias_hNN = bias_table[index.flatten()].view(*index.shape, heads).permute(2, 0, 1).to(q.dtype)
    scores = (q * head_dim**-0.5) @ k.transpose(-1, -2) + bias_hNN
    if any(moved):
        allowed_nNN = _region_mask_nNN(grid, used, moved).to(x.device)
        split = scores.unflatten(0, (batch, -1))
        scores = split.masked_fill(~allowed_nNN[None, :, None], torch.finfo(scores.dtype).min).flatten(0, 1)
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out_BDHWc = _reverse(out, used, batch, grid)
    if any(moved):
        out_BDHWc = out_BDHWc.roll(moved, dims=(1, 2, 3))
    return out_BDHWc[:, : size[0], : size[1], : size[2]]


def _padded(x_BDHWc: Tensor, used: Triple, pad_qkv: Tensor | None) -> tuple[Tensor, Triple]:
    """The grid padded to a multiple of the window, with ``pad_qkv`` in the padding."""
    _, depth, height, width, _ = x_BDHWc.shape
    extra = [-size % side for size, side in zip((depth, height, width), used, strict=True)]
    grid = (depth + extra[0], height + extra[1], width + extra[2])
    if not any(extra):
        return x_BDHWc, grid
    x = F.pad(x_BDHWc, (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))
    if pad_qkv is not None:
        real = F.pad(torch.ones(depth, height, width, 1, dtype=torch.bool, device=x.device),
                     (0, 0, 0, extra[2], 0, extra[1], 0, extra[0]))  # fmt: skip
        x = torch.where(real, x, pad_qkv.flatten().to(x.dtype))
    return x, grid
