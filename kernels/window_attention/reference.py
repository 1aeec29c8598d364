"""Specification of window attention in plain PyTorch (Liu et al., Swin / Video Swin Transformer).

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample, T tokens of a
sample, R rows of the bias table, P patterns of regions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.window_attention.geometry import (
    Triple,
    fit_window,
    middle_row,
    padded_grid,
    partition,
    position_codes_N,
    regions_nN,
    reverse,
)


def window_attention_reference(
    qkv_BDHW3hd: Tensor, bias_table: Tensor, window: Triple, shift: Triple, pad_qkv: Tensor | None = None
) -> Tensor:
    """Compute window attention in plain PyTorch: pad, roll, partition, attend, reverse. Keeps (B * n, h, N, N) scores in memory."""
    batch, heads, head_dim = qkv_BDHW3hd.shape[0], *qkv_BDHW3hd.shape[-2:]
    size = token_grid(qkv_BDHW3hd)
    used, moved = fit_window(size, window, shift)
    grid = padded_grid(size, used)
    x = pad_grid(qkv_BDHW3hd.flatten(4), grid, pad_qkv)
    if any(moved):
        x = x.roll([-step for step in moved], dims=(1, 2, 3))
    q, k, v = partition(x, used).unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)  # each (B n, h, N, d)
    scores = (q * head_dim**-0.5) @ k.transpose(-1, -2) + bias_hNN(bias_table, window, used).to(q.dtype)
    if any(moved):
        region = regions_nN(grid, used, moved).to(x.device)
        forbidden_nNN = region[:, :, None] != region[:, None, :]
        split = scores.unflatten(0, (batch, -1))
        scores = split.masked_fill(forbidden_nNN[None, :, None], torch.finfo(scores.dtype).min).flatten(0, 1)
    out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    out_BDHWc = reverse(out, used, batch, grid)
    if any(moved):
        out_BDHWc = out_BDHWc.roll(moved, dims=(1, 2, 3))
    return out_BDHWc[:, : size[0], : size[1], : size[2]]


def token_grid(qkv_BDHW3hd: Tensor) -> Triple:
    """Return (D, H, W) of packed queries, keys and values."""
    _, depth, height, width = qkv_BDHW3hd.shape[:4]
    return depth, height, width


def relative_index_NN(window: Triple, used: Triple) -> Tensor:
    """Return the row of the bias table for each pair of tokens of a window."""
    code_N = position_codes_N(window, used)
    return code_N[:, None] - code_N[None, :] + middle_row(window)


def bias_hNN(bias_table: Tensor, window: Triple, used: Triple) -> Tensor:
    """Return the bias of each head and pair of tokens, gathered from the table."""
    index = relative_index_NN(window, used).to(bias_table.device)
    return bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def pad_grid(x_BDHWc: Tensor, grid: Triple, pad_qkv: Tensor | None) -> Tensor:
    """Pad the grid at its end with ``pad_qkv``, or zeros."""
    _, depth, height, width, _ = x_BDHWc.shape
    extra = (0, grid[2] - width, 0, grid[1] - height, 0, grid[0] - depth)
    if not any(extra):
        return x_BDHWc
    x = F.pad(x_BDHWc, (0, 0, *extra))
    if pad_qkv is not None:
        real = F.pad(torch.ones(depth, height, width, dtype=torch.bool, device=x.device), extra)
        x = torch.where(real[..., None], x, pad_qkv.flatten().to(x.dtype))
    return x
