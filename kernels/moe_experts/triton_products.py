"""Products and sums over rows sorted by expert, as Triton kernels: shared by forward and backward pass.

Nothing waits for the device: tiles find their expert themselves, and grids have the largest number of tiles that can occur.
There are no atomics.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
In the kernels M are rows, N the columns of a product, C its contracted axis.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_launch import launch, observed

# Tiles as (rows, columns, contracted, warps, stages); the first is the safe choice. Float32 products run on the scalar units.
Tiles = tuple[tuple[int, int, int, int, int], ...]


UP_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 64, 64, 8, 3), (128, 64, 64, 4, 3), (64, 128, 64, 8, 3))


GROUPED_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 256, 64, 8, 3), (128, 128, 64, 4, 3), (64, 128, 64, 4, 3))


WEIGHT_GRADIENT_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 4, 3), (128, 128, 32, 4, 4))


FLOAT32_TILES: Tiles = ((32, 32, 32, 4, 2),)


@triton.jit
def tile_of_expert(ends, tile, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the expert of a tile of rows, its first row and the end of the expert's rows; unused tiles have no rows."""
    expert = tl.arange(0, EXPERTS_PAD)
    end = tl.load(ends + expert, mask=expert < EXPERTS, other=0)
    begin = tl.load(ends + expert - 1, mask=(expert > 0) & (expert < EXPERTS), other=0)
    tiles = (end - begin + BLOCK_M - 1) // BLOCK_M
    after = tl.cumsum(tiles, 0)
    mine = tl.sum((after <= tile).to(tl.int32), 0)
    first = tl.sum(tl.where(expert == mine, begin + (tile - after + tiles) * BLOCK_M, 0), 0)
    return mine, first, tl.sum(tl.where(expert == mine, end, 0), 0)


@triton.jit
def swizzled_tile(tiles_m, TILES_N: tl.constexpr, GROUP: tl.constexpr):
    """Return row and column tile of a program: GROUP row tiles traverse the columns together and share what they read."""
    pid = tl.program_id(0)
    first = pid // (GROUP * TILES_N) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inside = pid % (GROUP * TILES_N)
    return first + inside % height, inside // height


@triton.jit
def load_tile(pointers, row_within, column_within, ROWS_FIT: tl.constexpr, COLUMNS_FIT: tl.constexpr):
    """Load a tile of an operand, zero outside; bounds are checked only where the tiles do not divide the size."""
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
    """Multiply sorted rows (S, C) by the matrix of their expert, giving (S, N)."""
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    FITS_C: tl.constexpr = CONTRACTED % BLOCK_C == 0
    FITS_N: tl.constexpr = COLUMNS % BLOCK_N == 0
    tile_m, tile_n = swizzled_tile(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < COLUMNS
    left_M = left + tl.minimum(row, end - 1).to(tl.int64) * CONTRACTED  # rows past the end read the last in vain
    right += expert.to(tl.int64) * (COLUMNS * CONTRACTED)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, CONTRACTED, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        a = load_tile(left_M[:, None] + c[None, :], real_M, c < CONTRACTED, True, FITS_C)
        b = load_tile(right + column[None, :] * STRIDE_N + c[:, None] * STRIDE_C, c < CONTRACTED, real_N, FITS_C, FITS_N)
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
    """Sum a token's K rows in the order of its choices."""
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


def uses_pytorch_grouped_mm(x: Tensor, columns: int) -> bool:
    """Return whether to use PyTorch's grouped products (CUTLASS), which are faster from Hopper on (benchmarks/results)."""
    return (
        x.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(x.device) >= (9, 0)
        and x.dtype == torch.bfloat16
        and x.shape[1] % 8 == columns % 8 == 0
        and len(x) > 0
        and not observed()  # an observer wants our kernels
    )


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply sorted rows (S, C) by their expert's matrix (E, C, N); C or N must be contiguous."""
    experts, contracted, columns = weight.shape
    if uses_pytorch_grouped_mm(rows, columns):
        return F.grouped_mm(rows, weight, offs=ends)
    out = rows.new_empty(len(rows), columns)
    launch_rows(
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
        **expert_sizes(experts),
    )
    return out


def combine_rows(rows: Tensor, place: Tensor, weights: Tensor | None) -> Tensor:
    """Sum the rows of each token, weighted if ``weights`` (T, K) are given, to (T, N)."""
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


def launch_rows(
    kernel: Any,
    rows: int,
    experts: int,
    columns: int,
    tiles: Tiles,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    **constants: Any,
) -> None:
    """Launch over the tiles of the sorted rows (at most one partly filled tile per expert) and of the columns."""

    def tiles_m(config: Any) -> int:
        return triton.cdiv(rows, config["BLOCK_M"]) + experts

    launch(
        kernel,
        lambda c: (tiles_m(c) * triton.cdiv(columns, c["BLOCK_N"]),),
        tile_configs(tiles, dtype),
        ("HIDDEN", "WIDTH", "EXPERTS") if "HIDDEN" in constants else ("COLUMNS", "CONTRACTED", "EXPERTS"),
        {**arguments, "rows": rows},
        size=rows,
        **constants,
    )


def expert_sizes(experts: int) -> dict[str, int]:
    """Return the number of experts and its next power of two, as constants of a kernel."""
    return {"EXPERTS": experts, "EXPERTS_PAD": max(16, triton.next_power_of_2(experts))}


@cache
def tile_configs(tiles: Tiles, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    """Return the configurations of a kernel for these tiles and dtype."""
    return tuple(
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c}, num_warps=warps, num_stages=stages)
        for m, n, c, warps, stages in (FLOAT32_TILES if dtype == torch.float32 else tiles)
    )
