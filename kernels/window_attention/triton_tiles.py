"""Shared by the forward and backward kernels of window attention: loading of tiles, the dense bias, arguments and tile sizes.

Roll, partition, mask and reverse are address arithmetic; no window tensor and no score tensor is created. Two small integer tables,
shared by all samples and heads, describe the geometry:

- ``rows`` (n, N): token at each position of each window within its sample, -1 for padding.
- ``regions`` (n or 1, N): positions in different regions of a shifted window are masked.

The bias of all pairs of positions is expanded once per call, (h, P, P): gathering it from the table for every score took three
quarters of the time (benchmarks/results). Its columns beyond the window are -inf, so that keys need no bounds check. For float16
and bfloat16 it is float16, whose rounding error is below that of the scores.

Everything is computed in base 2 (exp2, log2): the scale and the bias carry a factor log2(e).

Shape letters: B samples, n windows of a sample, N tokens of a window, P N rounded up to tiles, T tokens of a sample, h heads,
d head size, R bias rows.
In the kernels M is the query tile and K the key tile. No atomics: results do not depend on the order of programs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_launch import launch
from kernels.window_attention.geometry import Geometry, middle_row

LOG2E: float = 1.4426950408889634
ONE_TILE, ONE_TILE_FLOAT32 = 64, 32
"""Largest window (tokens) that is computed in one tile; float32 needs twice the registers."""
# Tiles as (queries, keys, warps, stages); the first is the safe choice. Float32 has its own tiles: its products run on the
# scalar units, where large tiles do not fit the registers. None of them spills (kernels/compile_check.py).
Tiles = tuple[tuple[int, int, int, int], ...]
FLOAT32_TILES: Tiles = ((32, 16, 8, 1),)
SMALLEST_KEYS = 16
"""Smallest number of keys of a tile."""
KEY = ("N", "HEAD_DIM", "HEADS", "PADDED", "SHIFTED")
"""Arguments on which the choice of a tile may depend."""


@triton.jit
def place_of_program(pid, windows, HEADS: tl.constexpr, TILES: tl.constexpr):
    """Return tile, head, window of the batch, window of the sample, and sample of a program."""
    tile = pid % TILES
    head = pid // TILES % HEADS
    batch_window = pid // (TILES * HEADS)
    return tile, head, batch_window % windows, (batch_window // windows).to(tl.int64)


@triton.jit
def load_tokens(base, row, dim, pad, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
    """Load (positions, d) of the tokens ``row``; padding reads the vector ``pad``."""
    known = dim[None, :] < HEAD_DIM
    if PADDED:
        x = tl.load(base + row[:, None] * STRIDE + dim[None, :], mask=known & (row >= 0)[:, None], other=0.0)
        padding = tl.load(pad + dim, mask=dim < HEAD_DIM, other=0.0)
        x = tl.where((row < 0)[:, None], padding[None, :], x)
    else:
        x = tl.load(base + row[:, None] * STRIDE + dim[None, :], mask=known, other=0.0)
    return x


@triton.jit
def load_places(rows, regions, start, BLOCK: tl.constexpr, N: tl.constexpr):
    """Return token, region and existence of BLOCK positions from ``start``; positions beyond the window repeat its last."""
    place = start + tl.arange(0, BLOCK)
    within = place < N
    place = tl.minimum(place, N - 1)
    return tl.load(rows + place), tl.load(regions + place), within


@triton.jit
def load_pairs(bias, first_row, first_column, P: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Load the bias of a tile of pairs."""
    row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    return tl.load(bias + row[:, None] * P + column[None, :])


@triton.jit
def masked_scores(scores, row_regions, column_regions, SHIFTED: tl.constexpr):
    """Mask scores of pairs in different regions."""
    if SHIFTED:
        scores = tl.where(row_regions[:, None] == column_regions[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _dense_bias_kernel(
    table,
    codes,
    dense,
    N: tl.constexpr,
    P: tl.constexpr,
    HEADS: tl.constexpr,
    MIDDLE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Expand one tile of the bias of all pairs of positions, queries by keys or transposed, times log2(e)."""
    SIDE: tl.constexpr = P // BLOCK
    tile, head = tl.program_id(0) % (SIDE * SIDE), tl.program_id(0) // (SIDE * SIDE)
    row, column = tile // SIDE * BLOCK + tl.arange(0, BLOCK), tile % SIDE * BLOCK + tl.arange(0, BLOCK)
    row_code, column_code = tl.load(codes + tl.minimum(row, N - 1)), tl.load(codes + tl.minimum(column, N - 1))
    if TRANSPOSED:
        index = column_code[None, :] - row_code[:, None] + MIDDLE
        key_within = (row < N)[:, None] & (column >= 0)[None, :]
    else:
        index = row_code[:, None] - column_code[None, :] + MIDDLE
        key_within = (row >= 0)[:, None] & (column < N)[None, :]
    bias = tl.load(table + index * HEADS + head).to(tl.float32) * 1.4426950408889634
    if dense.dtype.element_ty == tl.float16:
        bias = tl.minimum(tl.maximum(bias, -6e4), 6e4)
    bias = tl.where(key_within, bias, float("-inf"))
    place = row[:, None] * P + column[None, :]
    tl.store(dense + head * P * P + place, bias.to(dense.dtype.element_ty))


def dense_bias(table: Tensor, dtype: torch.dtype, geometry: Geometry, transposed: bool = False) -> Tensor:
    """Return the bias (h, P, P), queries by keys or ``transposed``, for inputs of ``dtype``."""
    places, heads = geometry.rows_nN.shape[1], table.shape[1]
    side = _pitch(places, dtype)
    dense = torch.empty(heads, side, side, dtype=torch.float32 if dtype == torch.float32 else torch.float16, device=table.device)
    launch(
        _dense_bias_kernel,
        lambda c: (heads * (side // c["BLOCK"]) ** 2,),
        [triton.Config({"BLOCK": min(64, side)}, num_warps=4)],
        (),
        {"table": table.contiguous(), "codes": geometry.codes_N, "dense": dense},
        N=places,
        P=side,
        HEADS=heads,
        MIDDLE=middle_row(geometry.window),
        TRANSPOSED=transposed,
    )
    return dense


def common(qkv: Tensor, pad: Tensor, geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments and constants shared by all kernels."""
    _, tokens, _, heads, head_dim = qkv.shape
    windows, places = geometry.rows_nN.shape
    long = tokens * 3 * heads * head_dim >= 2**31
    arguments = {
        "qkv": qkv,
        "pad": pad.to(qkv.dtype).contiguous(),
        "rows": geometry.rows_nN.long() if long else geometry.rows_nN,
        "regions": geometry.regions_nN,
        "tokens": tokens,
        "windows": windows,
        "scale": head_dim**-0.5 * LOG2E,
    }
    constants = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "DIM": max(16, triton.next_power_of_2(head_dim)),
        "N": places,
        "P": _pitch(places, qkv.dtype),
        "PADDED": geometry.padded,
        "SHIFTED": geometry.shifted,
    }
    return arguments, constants


def in_one_tile(places: int, dtype: torch.dtype) -> bool:
    """Return whether a window of ``places`` tokens is computed in one tile."""
    return places <= (ONE_TILE_FLOAT32 if dtype == torch.float32 else ONE_TILE)


def _pitch(places: int, dtype: torch.dtype) -> int:
    """Return the side of the dense bias: no tile of pairs extends beyond it."""
    return max(16, triton.next_power_of_2(places)) if in_one_tile(places, dtype) else triton.cdiv(places, 128) * 128


@cache
def configs(tiles: Tiles, places: int, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    """Return the distinct configurations for a window of ``places`` tokens."""
    whole = max(16, triton.next_power_of_2(places))
    found: dict[str, triton.Config] = {}
    for queries, keys, warps, stages in FLOAT32_TILES if dtype == torch.float32 else tiles:
        blocks = {"BLOCK_M": min(queries, whole), "BLOCK_K": min(keys, whole)}
        config = triton.Config(blocks, num_warps=warps, num_stages=stages)
        found.setdefault(str(config), config)
    return tuple(found.values())
