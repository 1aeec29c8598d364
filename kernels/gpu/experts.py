"""The SwiGLU experts of a mixture and their combination as Triton kernels, forward and backward, on rows sorted by expert.

Nothing waits for the device: tiles find their expert by themselves, and grids are sized at the most tiles that there can be. Of the
forward pass only the experts' pre-activations are kept. There are no atomics.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
In the kernels M are rows, N the columns of a product, C what it sums over.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import launch, observed

# Tiles as (rows, columns, contracted, warps, stages), the first being the safe choice; float32 products run on the scalar units.
Tiles = tuple[tuple[int, int, int, int, int], ...]
UP_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 64, 64, 4, 3), (64, 128, 64, 8, 3))
GROUPED_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (64, 128, 64, 4, 3))
WEIGHT_GRADIENT_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 4, 4))
FLOAT32_TILES: Tiles = ((32, 32, 32, 4, 2),)


@triton.jit
def _tile_of_expert(ends, tile, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, BLOCK_M: tl.constexpr):
    """Expert of a tile of rows, its first row and the end of the expert's rows; no rows for tiles that are not needed."""
    expert = tl.arange(0, EXPERTS_PAD)
    end = tl.load(ends + expert, mask=expert < EXPERTS, other=0)
    begin = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < EXPERTS), other=0)
    tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(tiles, 0)
    mine = tl.sum((after <= tile).to(tl.int32), 0)
    first = tl.sum(tl.where(expert == mine, begin + (tile - after + tiles) * BLOCK_M, 0), 0)
    return mine, first, tl.sum(tl.where(expert == mine, end, 0), 0)


@triton.jit
def _swizzled(tiles_m, TILES_N: tl.constexpr, GROUP: tl.constexpr):
    """Row and column tile of a program: GROUP row tiles go through the columns together and share what they read."""
    pid = tl.program_id(0)
    first = pid // (GROUP * TILES_N) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inside = pid % (GROUP * TILES_N)
    return first + inside % height, inside // height


@triton.jit
def _tile(pointers, row_within, column_within, ROWS_FIT: tl.constexpr, COLUMNS_FIT: tl.constexpr):
    """A tile of an operand, zero outside; bounds are checked only where the tiles do not fit."""
    if ROWS_FIT and COLUMNS_FIT:
        tile = tl.load(pointers)
    elif ROWS_FIT:
        tile = tl.load(pointers, mask=column_within[None, :], other=0.0)
    elif COLUMNS_FIT:
        tile = tl.load(pointers, mask=row_within[:, None], other=0.0)
    else:
        tile = tl.load(pointers, mask=row_within[:, None] & column_within[None, :], other=0.0)
    return tile


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
    """Rows of tokens times gate and up weights of their expert; keeps both and writes silu(gate) * up.

    Both are one product: a row of gate and the same row of up take turns as its columns, so that they end in the same thread.
    """
    TILES_N: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    FITS: tl.constexpr = HIDDEN % BLOCK_C == 0
    tile_m, tile_n = _swizzled(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = _tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
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
        x = _tile(x_M[:, None] + c[None, :], real_M, c < HIDDEN, True, FITS)
        w = _tile(w_N[None, :] + c[:, None], c < HIDDEN, turn >= 0, FITS, True)
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


@triton.jit
def _grouped_kernel(
    left,
    right,
    ends,
    out,
    rows,
    COLUMNS: tl.constexpr,
    CONTRACTED: tl.constexpr,
    STRIDE_C: tl.constexpr,
    STRIDE_N: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sorted rows (S, C) times the matrix of their expert, (S, N)."""
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    FITS_C: tl.constexpr = CONTRACTED % BLOCK_C == 0
    FITS_N: tl.constexpr = COLUMNS % BLOCK_N == 0
    tile_m, tile_n = _swizzled(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = _tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < COLUMNS
    left_M = left + tl.minimum(row, end - 1).to(tl.int64) * CONTRACTED  # rows past the end read the last in vain
    right += expert.to(tl.int64) * (COLUMNS * CONTRACTED)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, CONTRACTED, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        a = _tile(left_M[:, None] + c[None, :], real_M, c < CONTRACTED, True, FITS_C)
        b = _tile(right + column[None, :] * STRIDE_N + c[:, None] * STRIDE_C, c < CONTRACTED, real_N, FITS_C, FITS_N)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    out += first.to(tl.int64) * COLUMNS
    place = tl.arange(0, BLOCK_M)[:, None] * COLUMNS + column[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=real_M[:, None] & real_N[None, :])


@triton.jit
def _combine_kernel(
    rows,
    place,
    weights,
    out,
    tokens,
    HIDDEN: tl.constexpr,
    TOP_K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Sum over a token's K rows, in the order of its choices."""
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    real_T = token < tokens
    mask = real_T[:, None] & (column < HIDDEN)[None, :]
    total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for k in tl.static_range(TOP_K):
        row = tl.load(place + token * TOP_K + k, mask=real_T, other=0).to(tl.int64)
        value = tl.load(rows + row[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0).to(tl.float32)
        if WEIGHTED:
            value *= tl.load(weights + token * TOP_K + k, mask=real_T, other=0.0)[:, None]
        total += value
    tl.store(out + token.to(tl.int64)[:, None] * HIDDEN + column[None, :], total.to(out.dtype.element_ty), mask=mask)


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
    """From the gradient of the unweighted activations: weighted activations, gradients of the pre-activations and of the weights.

    A weight's gradient is dout . (down act) = (downT dout) . act: the experts' outputs need not be kept.
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
    a = _tile(left + long[None, :] * ROWS + m[:, None], m < ROWS, real, FITS_M, WHOLE)
    b = _tile(right + long[:, None] * COLUMNS + n[None, :], real, n < COLUMNS, WHOLE, FITS_N)
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
    """Sum over an expert's rows of left (S, M) transposed times right (S, N)."""
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


def forward(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Combined output (T, H) and the pre-activations (S, 2 I) of the sorted rows."""
    (experts, hidden_size, width), top_k, rows = down.shape, place.shape[1], len(order)
    pre = hidden.new_empty(rows, 2 * width)
    activation = hidden.new_empty(rows, width)
    sizes = _expert_sizes(experts)
    _launch_rows(
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
    out = _product(activation, down.transpose(1, 2), ends)
    return _combine(out, place, weights), pre


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
    """Gradients of ``hidden``, ``weights``, ``gate_up`` and ``down``."""
    width, top_k, rows = down.shape[2], place.shape[1], len(order)
    token = order // top_k
    dout, hidden = dout.index_select(0, token), hidden.index_select(0, token)  # a row for each sorted choice
    dact = _product(dout, down, ends)
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
    dhidden = _combine(_product(dpre, gate_up, ends), place, None)
    return dhidden, dweights, _weight_gradient(dpre, hidden, ends), _weight_gradient(dout, weighted, ends)


def _pytorchs(x: Tensor, columns: int) -> bool:
    """Whether PyTorch's grouped products (CUTLASS) take these rows: from Hopper on they are the faster (benchmarks/results)."""
    return (
        x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and x.dtype == torch.bfloat16
        and x.shape[1] % 8 == columns % 8 == 0
        and len(x) > 0
        and not observed()  # an observer is there to see our kernels
    )


def _product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Sorted rows (S, C) times their expert's matrix (E, C, N), of which one of C and N is contiguous."""
    experts, contracted, columns = weight.shape
    if _pytorchs(rows, columns):
        return F.grouped_mm(rows, weight, offs=ends)
    out = rows.new_empty(len(rows), columns)
    _launch_rows(
        _grouped_kernel,
        len(rows),
        experts,
        columns,
        GROUPED_TILES,
        rows.dtype,
        {"left": rows, "right": weight, "ends": ends, "out": out},
        COLUMNS=columns,
        CONTRACTED=contracted,
        STRIDE_C=weight.stride(1),
        STRIDE_N=weight.stride(2),
        **_expert_sizes(experts),
    )
    return out


def _combine(rows: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    (tokens, top_k), hidden_size = place.shape, rows.shape[1]
    out = rows.new_empty(tokens, hidden_size)
    launch(
        _combine_kernel,
        lambda c: (triton.cdiv(tokens, c["BLOCK_T"]), triton.cdiv(hidden_size, c["BLOCK_N"])),
        [triton.Config({"BLOCK_T": 8, "BLOCK_N": 256}, num_warps=4)],
        (),
        {"rows": rows, "place": place, "weights": place if weights is None else weights, "out": out, "tokens": tokens},
        HIDDEN=hidden_size,
        TOP_K=top_k,
        WEIGHTED=weights is not None,
    )
    return out


def _weight_gradient(left: Tensor, right: Tensor, ends: Tensor) -> Tensor:
    """(E, M, N): of each expert's rows, left (S, M) transposed times right (S, N)."""
    experts, rows, columns = len(ends), left.shape[1], right.shape[1]
    if _pytorchs(left, columns):
        return F.grouped_mm(left.t(), right, offs=ends)
    out = left.new_empty(experts, rows, columns)
    launch(
        _weight_gradient_kernel,
        lambda c: (experts * triton.cdiv(rows, c["BLOCK_M"]) * triton.cdiv(columns, c["BLOCK_N"]),),
        _configs(WEIGHT_GRADIENT_TILES, left.dtype),
        ("ROWS", "COLUMNS", "EXPERTS"),
        {"left": left, "right": right, "ends": ends, "out": out},
        size=len(left),
        ROWS=rows,
        COLUMNS=columns,
        EXPERTS=experts,
    )
    return out


def _launch_rows(
    kernel: Any,
    rows: int,
    experts: int,
    columns: int,
    tiles: Tiles,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    **constants: Any,
) -> None:
    """Launch over the tiles of the sorted rows, at most one partly filled tile an expert, and of the columns."""

    def tiles_m(config: Any) -> int:
        return triton.cdiv(rows, config["BLOCK_M"]) + experts

    launch(
        kernel,
        lambda c: (tiles_m(c) * triton.cdiv(columns, c["BLOCK_N"]),),
        _configs(tiles, dtype),
        ("HIDDEN", "WIDTH", "EXPERTS") if "HIDDEN" in constants else ("COLUMNS", "CONTRACTED", "EXPERTS"),
        {**arguments, "rows": rows},
        size=rows,
        **constants,
    )


def _expert_sizes(experts: int) -> dict[str, int]:
    return {"EXPERTS": experts, "EXPERTS_PAD": max(16, triton.next_power_of_2(experts))}


@cache
def _configs(tiles: Tiles, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    return tuple(
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c}, num_warps=warps, num_stages=stages)
        for m, n, c, warps, stages in (FLOAT32_TILES if dtype == torch.float32 else tiles)
    )
