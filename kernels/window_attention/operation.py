"""Shifted window attention: check the arguments and choose the implementation.

Triton on a GPU. On a CPU the reference for small windows, and PyTorch's flash attention with our own backward pass for large ones.

Shape letters: B samples, D H W the token grid, h heads, d head size, N tokens of a window, n windows of a sample, T tokens of a
sample, R rows of the bias table, P patterns of regions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.dispatch import uses_triton
from kernels.window_attention.autograd import as_triple, window_attention_op
from kernels.window_attention.geometry import (
    Triple,
    bias_table_rows,
    fit_window,
)
from kernels.window_attention.reference import token_grid, window_attention_reference

EAGER_TOKENS = 216
"""Largest window (tokens) for which the reference, which keeps all scores, trains fastest on a CPU (benchmarks/results)."""
EAGER_TOKENS_INFERENCE = 64
"""The same without gradients: windows of slices, not those of volumes, whose scores exceed the cache (benchmarks/volumes.py)."""


LARGEST_HEAD = 128


def window_attention(
    qkv_BDHW3hd: Tensor, bias_table: Tensor, window: Triple, shift: Triple, pad_qkv: Tensor | None = None
) -> Tensor:
    """Compute attention within (shifted) windows of a token grid.

    A grid that the window does not divide is padded at its end. Padded tokens are keys and values too, as in Swin, which pads after
    the layer norm: ``pad_qkv`` is their value (the bias of the qkv projection), zero without it. An axis that one window covers is
    neither partitioned nor shifted.

    Args:
        qkv_BDHW3hd: packed queries, keys and values, float32, float16 or bfloat16; on a CPU also float64.
        bias_table: (rows of :func:`~kernels.window_attention.geometry.bias_table_rows`, h), added to the scores, differentiable.
        window: window size; shift: cyclic shift, 0 <= shift < window, on each of (D, H, W). A 2-D grid has D = 1.
        pad_qkv: (3, h, d), differentiable.

    Returns:
        (B, D, H, W, h * d). Results do not depend on the order of execution: the same input gives the same bits on the same device,
        with ``torch.use_deterministic_algorithms`` also in every new process (no tile sizes chosen by timing).

    Raises:
        ValueError: the bias table or shift does not match the window, or ``pad_qkv`` the heads.
    """
    window, shift = as_triple(window), as_triple(shift)
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
        raise ValueError(f"head size {head_dim} exceeds the kernel's tiles: at most {LARGEST_HEAD}, tuned for 16 to 64")
    used, _ = fit_window(token_grid(qkv_BDHW3hd), window, shift)
    largest = EAGER_TOKENS if torch.is_grad_enabled() else EAGER_TOKENS_INFERENCE
    if not uses_triton(qkv_BDHW3hd) and used[0] * used[1] * used[2] <= largest:
        return window_attention_reference(qkv_BDHW3hd, bias_table, window, shift, pad_qkv)
    pad = qkv_BDHW3hd.new_zeros(3, heads, head_dim) if pad_qkv is None else pad_qkv
    return window_attention_op(qkv_BDHW3hd, bias_table, pad, window, shift)[0].flatten(4)
