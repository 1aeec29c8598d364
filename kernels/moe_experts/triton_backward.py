"""Backward pass of the SwiGLU experts as Triton kernels: gradients of hidden states, weights and matrices.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
In the kernels M are rows, N the columns of a product, C its contracted axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.moe_experts.triton_products import (
    WEIGHT_GRADIENT_TILES,
    combine_rows,
    grouped_product,
    load_tile,
    tile_configs,
    uses_pytorch_grouped_mm,
)
from kernels.triton_launch import launch


@triton.jit
def _activation_backward_kernel(
    dact,
    order,
    weights,
    pre,
    dpre,
    weighted,
    dweights,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute weighted activations and the gradients of pre-activations and weights from the gradient of the activations.

    The gradient of a weight is dout . (down act) = (downT dout) . act, so that the experts' outputs need not be kept.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    real_M = row < rows
    pair = tl.load(order + row, mask=real_M, other=0)
    weight = tl.load(weights + pair, mask=real_M, other=0.0)[:, None]
    dtype = dpre.dtype.element_ty
    long = row.to(tl.int64)[:, None]
    dweight_M = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, WIDTH, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)
        mask = real_M[:, None] & (column < WIDTH)[None, :]
        narrow, wide = long * WIDTH + column[None, :], long * (2 * WIDTH) + column[None, :]
        gradient = tl.load(dact + narrow, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(pre + wide, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(pre + WIDTH + wide, mask=mask, other=0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        dweight_M += tl.sum(gradient * silu * up, 1)
        tl.store(weighted + narrow, (weight * silu * up).to(dtype), mask=mask)
        gradient *= weight
        tl.store(dpre + wide, (gradient * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(dtype), mask=mask)
        tl.store(dpre + WIDTH + wide, (gradient * silu).to(dtype), mask=mask)
    tl.store(dweights + pair, dweight_M, mask=real_M)


@triton.jit
def _weight_gradient_step(
    acc,
    start,
    end,
    left,
    right,
    m,
    n,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,
    FITS_M: tl.constexpr,
    FITS_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = start + tl.arange(0, BLOCK_C)
    real, long = row < end, row.to(tl.int64)
    a = load_tile(left + long[None, :] * ROWS + m[:, None], m < ROWS, real, FITS_M, WHOLE)
    b = load_tile(right + long[:, None] * COLUMNS + n[None, :], real, n < COLUMNS, WHOLE, FITS_N)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _weight_gradient_kernel(
    left,
    right,
    ends,
    out,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum left (S, M) transposed times right (S, N) over an expert's rows."""
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = TILES_N * ((ROWS + BLOCK_M - 1) // BLOCK_M)
    FITS_M: tl.constexpr = ROWS % BLOCK_M == 0
    FITS_N: tl.constexpr = COLUMNS % BLOCK_N == 0
    expert, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    m = tile // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(ends + expert)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    whole = begin + (end - begin) // BLOCK_C * BLOCK_C
    for start in range(begin, whole, BLOCK_C):
        acc = _weight_gradient_step(acc, start, end, left, right, m, n, ROWS, COLUMNS, True, FITS_M, FITS_N, BLOCK_C)
    if whole < end:
        acc = _weight_gradient_step(acc, whole, end, left, right, m, n, ROWS, COLUMNS, False, FITS_M, FITS_N, BLOCK_C)
    place = expert.to(tl.int64) * (ROWS * COLUMNS) + m[:, None] * COLUMNS + n[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=(m < ROWS)[:, None] & (n < COLUMNS)[None, :])


def backward(
    dout: Tensor,
    hidden: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    order: Tensor,
    place: Tensor,
    ends: Tensor,
    pre: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of ``hidden``, ``weights``, ``gate_up`` and ``down``."""
    width, top_k, rows = down.shape[2], place.shape[1], len(order)
    token = order // top_k
    dout, hidden = dout.index_select(0, token), hidden.index_select(0, token)  # a row for each sorted choice
    dact = grouped_product(dout, down, ends)
    dpre, weighted, dweights = torch.empty_like(pre), torch.empty_like(dact), torch.empty_like(weights)
    launch(
        _activation_backward_kernel,
        lambda c: (triton.cdiv(rows, c["BLOCK_M"]),),
        [triton.Config({"BLOCK_M": 1, "BLOCK_N": 1024}, num_warps=4)],
        (),
        {
            "dact": dact,
            "order": order,
            "weights": weights,
            "pre": pre,
            "dpre": dpre,
            "weighted": weighted,
            "dweights": dweights,
            "rows": rows,
        },
        WIDTH=width,
    )
    dhidden = combine_rows(grouped_product(dpre, gate_up, ends), place, None)
    return dhidden, dweights, _weight_gradient(dpre, hidden, ends), _weight_gradient(dout, weighted, ends)


def _weight_gradient(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """Return (E, M, N): left (S, M) transposed times right (S, N), over each expert's rows."""
    experts, rows, columns = len(ends), left.shape[1], right.shape[1]
    if uses_pytorch_grouped_mm(left, columns):
        return F.grouped_mm(left.t(), right, offs=ends)
    out = left.new_empty(experts, rows, columns)
    launch(
        _weight_gradient_kernel,
        lambda c: (experts * triton.cdiv(rows, c["BLOCK_M"]) * triton.cdiv(columns, c["BLOCK_N"]),),
        tile_configs(WEIGHT_GRADIENT_TILES, left.dtype),
        ("ROWS", "COLUMNS", "EXPERTS"),
        {"left": left, "right": right, "ends": ends, "out": out},
        size=len(left),
        ROWS=rows,
        COLUMNS=columns,
        EXPERTS=experts,
    )
    return out
