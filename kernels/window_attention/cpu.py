"""Window attention with large windows on a CPU: PyTorch's flash attention forward, recomputed scores backward.

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample, T tokens of a
sample, R rows of the bias table, P patterns of regions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernels.window_attention.geometry import (
    Geometry,
)
from kernels.window_attention.reference import bias_hNN as gather_bias_hNN
from kernels.window_attention.reference import relative_index_NN

CHUNK = 4
"""Windows of one step of the backward pass: their scores stay in the cache."""


@dataclass(frozen=True)
class WindowLayout:
    """Windows of a batch sorted by the pattern of their regions, so that the windows of a pattern share one (N, N) mask.

    Attributes:
        token_wN: token in the flattened batch at each position of the w = n * B windows, 0 for padding.
        hidden_wN: positions that are padding.
        place_BT: position of every token in the flattened windows.
        windows_P: number of windows of each pattern; regions_PN: its regions.
    """

    token_wN: Tensor
    hidden_wN: Tensor
    place_BT: Tensor
    windows_P: list[int]
    regions_PN: Tensor


@lru_cache(maxsize=4)
def window_layout(where: Geometry, batch: int, tokens: int) -> WindowLayout:
    """Return the sorted windows of a batch of ``batch`` samples of ``tokens`` tokens."""
    regions_PN, pattern_n, counts_P = where.regions_nN.unique(dim=0, return_inverse=True, return_counts=True)
    rows_nN = where.rows_nN.long()
    if where.shifted:
        rows_nN = rows_nN[pattern_n.argsort(stable=True)]
    else:
        counts_P = torch.tensor([len(rows_nN)])
    token = (rows_nN[:, None] + torch.arange(batch)[:, None] * tokens).flatten(0, 1)
    hidden = (rows_nN < 0)[:, None].expand(-1, batch, -1).flatten(0, 1)
    place = torch.empty(batch * tokens, dtype=torch.long)
    place[token[~hidden]] = torch.arange(token.numel()).view(token.shape)[~hidden]
    return WindowLayout(token.masked_fill(hidden, 0), hidden, place, (counts_P * batch).tolist(), regions_PN)


def _chunks(
    layout: WindowLayout, table: Tensor, where: Geometry, dtype: torch.dtype, size: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield windows of one pattern, ``size`` at a time, with their bias (h, N, N), -inf between regions."""
    start, unmasked_hNN = 0, gather_bias_hNN(table, where.window, where.used).to(dtype).contiguous()
    for windows, region_N in zip(layout.windows_P, layout.regions_PN, strict=True):
        forbidden_NN = region_N[:, None] != region_N[None, :]
        bias_hNN = unmasked_hNN.masked_fill(forbidden_NN, -torch.inf) if where.shifted else unmasked_hNN
        step = size or max(1, windows)
        for first in range(start, start + windows, step):
            yield slice(first, min(first + step, start + windows)), bias_hNN
        start += windows


def _gather_windows(x_BTc: Tensor, layout: WindowLayout, padding: Tensor) -> Tensor:
    """Gather tokens (B, T, ...) into windows (w, N, ...)."""
    windows = x_BTc.flatten(0, 1)[layout.token_wN]
    if layout.hidden_wN.any():
        windows[layout.hidden_wN] = padding.to(windows.dtype)
    return windows


def forward(qkv_BT3hd: Tensor, table: Tensor, pad: Tensor, where: Geometry) -> tuple[Tensor, Tensor]:
    """Return the output (B, T, h, d) and the log-sum-exp (w, h, N)."""
    batch, tokens = qkv_BT3hd.shape[:2]
    layout = window_layout(where, batch, tokens)
    q, k, v = _gather_windows(qkv_BT3hd, layout, pad).permute(2, 0, 3, 1, 4)  # each (w, h, N, d)
    parts = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q[some], k[some], v[some], 0.0, False, attn_mask=bias_hNN[None])
        for some, bias_hNN in _chunks(layout, table, where, q.dtype, None)
    ]
    out_whNd, lse = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    out = out_whNd.transpose(1, 2).flatten(0, 1)[layout.place_BT]
    return out.view(batch, tokens, *out.shape[1:]), lse


def backward(
    dout_BThd: Tensor, qkv_BT3hd: Tensor, table: Tensor, pad: Tensor, out_BThd: Tensor, lse_whN: Tensor, where: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of qkv, bias table and padding. Probabilities are recomputed for a few windows at a time."""
    batch, tokens, _, heads, head_dim = qkv_BT3hd.shape
    layout, scale, dtype = window_layout(where, batch, tokens), head_dim**-0.5, qkv_BT3hd.dtype
    windows = _gather_windows(qkv_BT3hd, layout, pad)
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    zero = torch.zeros((), dtype=dtype)
    do = _gather_windows(dout_BThd, layout, zero).transpose(1, 2)
    statistic = torch.promote_types(dtype, torch.float32)
    delta = _gather_windows((dout_BThd.to(statistic) * out_BThd.to(statistic)).sum(-1), layout, zero).transpose(1, 2)
    dbias_hNN = torch.zeros(heads, q.shape[2], q.shape[2], dtype=statistic)
    dwindows = torch.empty_like(windows)
    dq, dk, dv = dwindows.permute(2, 0, 3, 1, 4)
    for some, bias_hNN in _chunks(layout, table.to(dtype), where, statistic, CHUNK):
        p = (q[some].to(statistic) * scale) @ k[some].to(statistic).transpose(-1, -2)
        p.add_(bias_hNN).sub_(lse_whN[some].unsqueeze(-1)).exp_()
        ds = (do[some] @ v[some].transpose(-1, -2)).to(statistic).sub_(delta[some].unsqueeze(-1)).mul_(p)
        dbias_hNN += ds.sum(0)
        dv[some] = p.to(dtype).transpose(-1, -2) @ do[some]
        ds = ds.to(dtype)
        dq[some] = (ds @ k[some]).mul_(scale)
        dk[some] = (ds.transpose(-1, -2) @ q[some]).mul_(scale)
    dqkv = dwindows.flatten(0, 1)[layout.place_BT].view(qkv_BT3hd.shape)
    dpad = dwindows[layout.hidden_wN].sum(0, dtype=statistic).to(pad.dtype)
    index = relative_index_NN(where.window, where.used).flatten()
    dtable = torch.zeros(table.shape, dtype=statistic).index_add_(0, index, dbias_hNN.permute(1, 2, 0).flatten(0, 1))
    return dqkv, dtable.to(table.dtype), dpad
