"""Window attention as a PyTorch operation: registration with ``torch.library``, shapes for tracing, and gradients.

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample, T tokens of a
sample, R rows of the bias table, P patterns of regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.dispatch import uses_triton
from kernels.window_attention import cpu
from kernels.window_attention.geometry import (
    Geometry,
    Triple,
    fit_window,
    geometry,
    padded_grid,
)
from kernels.window_attention.reference import token_grid


@torch.library.custom_op("omnimri::window_attention", mutates_args=())
def window_attention_op(
    qkv: Tensor, bias_table: Tensor, pad: Tensor, window: Sequence[int], shift: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return output (B, D, H, W, h, d) and log-sum-exp for the backward pass: per token to base 2 (Triton), else per window."""
    where = _geometry(qkv, window, shift)
    if uses_triton(qkv):
        from kernels.window_attention import triton_forward

        out, lse = triton_forward.forward(qkv.contiguous().flatten(1, 3), bias_table, pad, where)
    else:
        out, lse = cpu.forward(qkv.flatten(1, 3), bias_table, pad, where)
    return out.view(*qkv.shape[:4], *qkv.shape[5:]), lse


@window_attention_op.register_fake
def _(qkv: Tensor, bias_table: Tensor, pad: Tensor, window: Sequence[int], shift: Sequence[int]) -> tuple[Tensor, Tensor]:
    batch, depth, height, width, _, heads, head_dim = qkv.shape
    tokens = depth * height * width
    if uses_triton(qkv):
        lse = qkv.new_empty(batch, tokens, heads, dtype=torch.float32)
    else:
        size = token_grid(qkv)
        used, _ = fit_window(size, as_triple(window), as_triple(shift))
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
    """Return the gradients of qkv, bias table and padding."""
    where = _geometry(qkv, window, shift)
    flat = dout.contiguous().flatten(1, 3), qkv.contiguous().flatten(1, 3), bias_table, pad, out.flatten(1, 3), lse
    if uses_triton(qkv):
        from kernels.window_attention import triton_backward

        dqkv, dtable, dpad = triton_backward.backward(*flat, where)
    else:
        with torch.autocast(qkv.device.type, enabled=False):
            dqkv, dtable, dpad = cpu.backward(*flat, where)
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


window_attention_op.register_autograd(_differentiate, setup_context=_setup_context)


def as_triple(values: Sequence[int]) -> Triple:
    """Return (D, H, W) sizes as a tuple of three."""
    return values[0], values[1], values[2]


def _geometry(qkv_BDHW3hd: Tensor, window: Sequence[int], shift: Sequence[int]) -> Geometry:
    return geometry(token_grid(qkv_BDHW3hd), as_triple(window), as_triple(shift), qkv_BDHW3hd.device)
