"""Shifted window attention in 2-D and 3-D with a trainable relative-position bias (Liu et al., Swin / Video Swin Transformer).

:func:`window_attention` is the operation, :func:`window_attention_reference` its specification in plain PyTorch. On a GPU the
operation is the Triton kernels of ``kernels/gpu``; on a CPU it is the reference for small windows, and PyTorch's flash attention
with a backward pass of our own for large ones.

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample, T tokens of a
sample, R rows of the bias table, P patterns of regions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import uses_triton
from kernels.windows import (
    Geometry,
    Triple,
    bias_table_rows,
    fitted,
    geometry,
    middle_row,
    padded_grid,
    partition,
    position_codes_N,
    regions_nN,
    reverse,
)

EAGER_TOKENS = 216
"""On a CPU, windows of up to so many tokens train fastest with their scores kept in memory (benchmarks/results)."""
LARGEST_HEAD = 128
CHUNK = 4
"""Windows that the CPU's backward pass takes at a time: their scores stay in the cache."""


def window_attention(
    qkv_BDHW3hd: Tensor, bias_table: Tensor, window: Triple, shift: Triple, pad_qkv: Tensor | None = None
) -> Tensor:
    """Attention inside (shifted) windows of a token grid.

    A grid that the window does not divide is padded at its far end. Padded tokens take part as keys and values, as in Swin, which
    pads after the layer norm: ``pad_qkv`` is what they are (the bias of the qkv projection); without it they are zero. An axis that
    one window covers is neither cut nor shifted.

    Args:
        qkv_BDHW3hd: packed queries, keys and values, float32, float16 or bfloat16; on a CPU also float64.
        bias_table: (rows of :func:`~kernels.windows.bias_table_rows`, h), added to the scores, receives gradients.
        window: window size; shift: cyclic shift, 0 <= shift < window, on each of (D, H, W). A 2-D grid has D = 1.
        pad_qkv: (3, h, d), receives gradients.

    Returns:
        (B, D, H, W, h * d). Results do not depend on the order of execution: the same input gives the same bits on the same device,
        with ``torch.use_deterministic_algorithms`` also in every new process (no tile sizes chosen by timing).

    Raises:
        ValueError: bias table or shift do not fit the window, or ``pad_qkv`` the heads.
    """
    window, shift = _triple(window), _triple(shift)
    heads, head_dim = qkv_BDHW3hd.shape[-2:]
    if pad_qkv is not None and pad_qkv.shape != (3, heads, head_dim):
        raise ValueError(f"pad_qkv is {tuple(pad_qkv.shape)}, {heads} heads of {head_dim} need {(3, heads, head_dim)}")
    if bias_table.shape != (bias_table_rows(window), heads):
        raise ValueError(
            f"bias table is {tuple(bias_table.shape)}, window {window} with {heads} heads needs {(bias_table_rows(window), heads)}"
        )
    if any(not 0 <= step < side for step, side in zip(shift, window, strict=True)):
        raise ValueError(f"shift {shift} must be at least 0 and below the window {window}")
    if uses_triton(qkv_BDHW3hd) and head_dim > LARGEST_HEAD:
        raise ValueError(f"heads of {head_dim} numbers do not fit the kernel's tiles: at most {LARGEST_HEAD}, tuned for 16 to 64")
    used, _ = fitted(_size(qkv_BDHW3hd), window, shift)
    if not uses_triton(qkv_BDHW3hd) and used[0] * used[1] * used[2] <= EAGER_TOKENS:
        return window_attention_reference(qkv_BDHW3hd, bias_table, window, shift, pad_qkv)
    pad = qkv_BDHW3hd.new_zeros(3, heads, head_dim) if pad_qkv is None else pad_qkv
    return _window_attention_op(qkv_BDHW3hd, bias_table, pad, window, shift)[0].flatten(4)


def window_attention_reference(
    qkv_BDHW3hd: Tensor, bias_table: Tensor, window: Triple, shift: Triple, pad_qkv: Tensor | None = None
) -> Tensor:
    """What :func:`window_attention` computes, in plain PyTorch: pad, roll, cut, attend, put back. Keeps (B * n, h, N, N) scores."""
    batch, heads, head_dim = qkv_BDHW3hd.shape[0], *qkv_BDHW3hd.shape[-2:]
    size = _size(qkv_BDHW3hd)
    used, moved = fitted(size, window, shift)
    grid = padded_grid(size, used)
    x = _padded(qkv_BDHW3hd.flatten(4), grid, pad_qkv)
    if any(moved):
        x = x.roll([-step for step in moved], dims=(1, 2, 3))
    q, k, v = partition(x, used).unflatten(-1, (3, heads, head_dim)).permute(2, 0, 3, 1, 4)  # each (B n, h, N, d)
    scores = (q * head_dim**-0.5) @ k.transpose(-1, -2) + _bias_hNN(bias_table, window, used).to(q.dtype)
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


def _size(qkv_BDHW3hd: Tensor) -> Triple:
    _, depth, height, width = qkv_BDHW3hd.shape[:4]
    return depth, height, width


def _relative_index_NN(window: Triple, used: Triple) -> Tensor:
    code_N = position_codes_N(window, used)
    return code_N[:, None] - code_N[None, :] + middle_row(window)


def _bias_hNN(bias_table: Tensor, window: Triple, used: Triple) -> Tensor:
    index = _relative_index_NN(window, used).to(bias_table.device)
    return bias_table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)


def _padded(x_BDHWc: Tensor, grid: Triple, pad_qkv: Tensor | None) -> Tensor:
    """The grid filled up with ``pad_qkv``."""
    _, depth, height, width, _ = x_BDHWc.shape
    extra = (0, grid[2] - width, 0, grid[1] - height, 0, grid[0] - depth)
    if not any(extra):
        return x_BDHWc
    x = F.pad(x_BDHWc, (0, 0, *extra))
    if pad_qkv is not None:
        real = F.pad(torch.ones(depth, height, width, dtype=torch.bool, device=x.device), extra)
        x = torch.where(real[..., None], x, pad_qkv.flatten().to(x.dtype))
    return x


@torch.library.custom_op("omnimri::window_attention", mutates_args=())
def _window_attention_op(
    qkv: Tensor, bias_table: Tensor, pad: Tensor, window: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Output (B, D, H, W, h, d) and log-sum-exp for the backward pass: by token and to base 2 from Triton, else by window."""
    where = _geometry(qkv, window, shift)
    if uses_triton(qkv):
        from kernels.gpu import window_forward

        out, lse = window_forward.forward(qkv.contiguous().flatten(1, 3), bias_table, pad, where)
    else:
        out, lse = _cpu_forward(qkv.flatten(1, 3), bias_table, pad, where)
    return out.view(*qkv.shape[:4], *qkv.shape[5:]), lse


@_window_attention_op.register_fake
def _(qkv: Tensor, bias_table: Tensor, pad: Tensor, window: Sequence[int], shift: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, depth, height, width, _, heads, head_dim = qkv.shape
    tokens = depth * height * width
    if uses_triton(qkv):
        lse = qkv.new_empty(batch, tokens, heads, dtype=torch.float32)
    else:
        size = _size(qkv)
        used, _ = fitted(size, _triple(window), _triple(shift))
        grid, places = padded_grid(size, used), used[0] * used[1] * used[2]
        lse = qkv.new_empty(
            batch * grid[0] * grid[1] * grid[2] // places, heads, places, dtype=torch.promote_types(qkv.dtype, torch.float32)
        )
    return qkv.new_empty(batch, depth, height, width, heads, head_dim), lse


@torch.library.custom_op("omnimri::window_attention_backward", mutates_args=())
def _window_attention_backward_op(
    dout: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    pad: Tensor,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of qkv, bias table and padding."""
    where = _geometry(qkv, window, shift)
    flat = dout.contiguous().flatten(1, 3), qkv.contiguous().flatten(1, 3), bias_table, pad, out.flatten(1, 3), lse
    if uses_triton(qkv):
        from kernels.gpu import window_backward

        dqkv, dtable, dpad = window_backward.backward(*flat, where)
    else:
        with torch.autocast(qkv.device.type, enabled=False):
            dqkv, dtable, dpad = _cpu_backward(*flat, where)
    return dqkv.view(qkv.shape), dtable.contiguous(), dpad.contiguous()


@_window_attention_backward_op.register_fake
def _(
    dout: Tensor,
    qkv: Tensor,
    bias_table: Tensor,
    pad: Tensor,
    out: Tensor,
    lse: Tensor,
    window: Sequence[int],
    shift: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), bias_table.new_empty(bias_table.shape), pad.new_empty(pad.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, bias_table, pad, ctx.window, ctx.shift = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(qkv, bias_table, pad, *output)


def _differentiate(ctx: Any, dout: Tensor | None, _dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 5
    return *_window_attention_backward_op(dout, *ctx.saved_tensors, ctx.window, ctx.shift), None, None


_window_attention_op.register_autograd(_differentiate, setup_context=_setup_context)


def _triple(values: Sequence[int]) -> Triple:
    return values[0], values[1], values[2]


def _geometry(qkv_BDHW3hd: Tensor, window: Sequence[int], shift: Sequence[int]) -> Geometry:
    return geometry(_size(qkv_BDHW3hd), _triple(window), _triple(shift), qkv_BDHW3hd.device)


@dataclass(frozen=True)
class _CpuLayout:
    """Windows of a batch sorted by the pattern of their regions, so that a pattern's windows share one (N, N) mask.

    Attributes:
        token_wN: token in the flattened batch of each place of the w = n * B windows, 0 for padding.
        hidden_wN: places that are padding.
        place_BT: for every token its place in the flattened windows.
        windows_P: windows of each pattern; regions_PN: its regions.
    """

    token_wN: Tensor
    hidden_wN: Tensor
    place_BT: Tensor
    windows_P: list[int]
    regions_PN: Tensor


@lru_cache(maxsize=4)
def _cpu_layout(where: Geometry, batch: int, tokens: int) -> _CpuLayout:
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
    return _CpuLayout(token.masked_fill(hidden, 0), hidden, place, (counts_P * batch).tolist(), regions_PN)


def _cpu_chunks(
    layout: _CpuLayout, table: Tensor, where: Geometry, dtype: torch.dtype, size: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Windows of one pattern, ``size`` at a time, and their bias (h, N, N), -inf between regions."""
    start, everywhere_hNN = 0, _bias_hNN(table, where.window, where.used).to(dtype).contiguous()
    for windows, region_N in zip(layout.windows_P, layout.regions_PN, strict=True):
        forbidden_NN = region_N[:, None] != region_N[None, :]
        bias_hNN = everywhere_hNN.masked_fill(forbidden_NN, -torch.inf) if where.shifted else everywhere_hNN
        step = size or max(1, windows)
        for first in range(start, start + windows, step):
            yield slice(first, min(first + step, start + windows)), bias_hNN
        start += windows


def _cpu_windows(x_BTc: Tensor, layout: _CpuLayout, padding: Tensor) -> Tensor:
    """(B, T, ...) -> (w, N, ...)."""
    windows = x_BTc.flatten(0, 1)[layout.token_wN]
    if layout.hidden_wN.any():
        windows[layout.hidden_wN] = padding.to(windows.dtype)
    return windows


def _cpu_forward(qkv_BT3hd: Tensor, table: Tensor, pad: Tensor, where: Geometry) -> tuple[Tensor, Tensor]:
    batch, tokens = qkv_BT3hd.shape[:2]
    layout = _cpu_layout(where, batch, tokens)
    q, k, v = _cpu_windows(qkv_BT3hd, layout, pad).permute(2, 0, 3, 1, 4)  # each (w, h, N, d)
    parts = [
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q[some], k[some], v[some], 0.0, False, attn_mask=bias_hNN[None])
        for some, bias_hNN in _cpu_chunks(layout, table, where, q.dtype, None)
    ]
    out_whNd, lse = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    out = out_whNd.transpose(1, 2).flatten(0, 1)[layout.place_BT]
    return out.view(batch, tokens, *out.shape[1:]), lse


def _cpu_backward(
    dout_BThd: Tensor, qkv_BT3hd: Tensor, table: Tensor, pad: Tensor, out_BThd: Tensor, lse_whN: Tensor, where: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities are made again, for few windows at a time; one pass gives all three gradients."""
    batch, tokens, _, heads, head_dim = qkv_BT3hd.shape
    layout, scale, dtype = _cpu_layout(where, batch, tokens), head_dim**-0.5, qkv_BT3hd.dtype
    windows = _cpu_windows(qkv_BT3hd, layout, pad)
    q, k, v = windows.permute(2, 0, 3, 1, 4)
    nothing = torch.zeros((), dtype=dtype)
    do = _cpu_windows(dout_BThd, layout, nothing).transpose(1, 2)
    statistic = torch.promote_types(dtype, torch.float32)
    delta = _cpu_windows((dout_BThd.to(statistic) * out_BThd.to(statistic)).sum(-1), layout, nothing).transpose(1, 2)
    dbias_hNN = torch.zeros(heads, q.shape[2], q.shape[2], dtype=statistic)
    dwindows = torch.empty_like(windows)
    dq, dk, dv = dwindows.permute(2, 0, 3, 1, 4)
    for some, bias_hNN in _cpu_chunks(layout, table.to(dtype), where, statistic, CHUNK):
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
    index = _relative_index_NN(where.window, where.used).flatten()
    dtable = torch.zeros(table.shape, dtype=statistic).index_add_(0, index, dbias_hNN.permute(1, 2, 0).flatten(0, 1))
    return dqkv, dtable.to(table.dtype), dpad
