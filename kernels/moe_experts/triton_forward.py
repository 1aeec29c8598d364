"""Forward pass of the SwiGLU experts as Triton kernels. Only the pre-activations are kept for the backward pass.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
In the kernels M are rows, N the columns of a product, C its contracted axis.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.moe_experts.triton_products import (
    UP_TILES,
    combine_rows,
    expert_sizes,
    grouped_product,
    launch_rows,
    load_tile,
    swizzled_tile,
    tile_of_expert,
)


@triton.jit
def _up_kernel(
    hidden,
    gate_up,
    order,
    ends,
    pre,
    activation,
    rows,
    HIDDEN: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Multiply token rows by the gate and up weights of their expert; store both and silu(gate) * up.

    Both are one product: a row of gate and the same row of up take turns as its columns, so that they end in the same thread.
    """
    TILES_N: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    FITS: tl.constexpr = HIDDEN % BLOCK_C == 0
    tile_m, tile_n = swizzled_tile(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < WIDTH
    token = tl.load(order + row, mask=real_M, other=0) // TOP_K  # rows past the end read a token in vain
    x_M = hidden + token.to(tl.int64) * HIDDEN
    turn = tl.arange(0, 2 * BLOCK_N)
    source = turn % 2 * WIDTH + tl.minimum(tile_n * BLOCK_N + turn // 2, WIDTH - 1)
    w_N = gate_up + expert.to(tl.int64) * (2 * WIDTH * HIDDEN) + source.to(tl.int64) * HIDDEN
    acc = tl.zeros([BLOCK_M, 2 * BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = load_tile(x_M[:, None] + c[None, :], real_M, c < HIDDEN, True, FITS)
        w = load_tile(w_N[None, :] + c[:, None], c < HIDDEN, turn >= 0, FITS, True)
        acc = tl.dot(x, w, acc, input_precision="ieee")
    gate, up = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N, 2)))
    mask = real_M[:, None] & real_N[None, :]
    dtype = pre.dtype.element_ty
    local = tl.arange(0, BLOCK_M)[:, None]
    pre += first.to(tl.int64) * (2 * WIDTH)
    gate, up = gate.to(dtype), up.to(dtype)
    tl.store(pre + local * (2 * WIDTH) + column[None, :], gate, mask=mask)
    tl.store(pre + WIDTH + local * (2 * WIDTH) + column[None, :], up, mask=mask)
    act = gate.to(tl.float32) * tl.sigmoid(gate.to(tl.float32)) * up.to(tl.float32)
    tl.store(activation + first.to(tl.int64) * WIDTH + local * WIDTH + column[None, :], act.to(dtype), mask=mask)


def forward(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the combined output (T, H) and the pre-activations (S, 2 I) of the sorted rows."""
    (experts, hidden_size, width), top_k, rows = down.shape, place.shape[1], len(order)
    pre = hidden.new_empty(rows, 2 * width)
    activation = hidden.new_empty(rows, width)
    sizes = expert_sizes(experts)
    launch_rows(
        _up_kernel,
        rows,
        experts,
        width,
        UP_TILES,
        hidden.dtype,
        {"hidden": hidden, "gate_up": gate_up, "order": order, "ends": ends, "pre": pre, "activation": activation},
        HIDDEN=hidden_size,
        WIDTH=width,
        TOP_K=top_k,
        **sizes,
    )
    out = grouped_product(activation, down.transpose(1, 2), ends)
    return combine_rows(out, place, weights), pre
