"""Forward pass of shifted window attention with a trainable bias, as Triton kernels.

Names as in :mod:`kernels.window_attention.triton_tiles`.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_launch import launch
from kernels.window_attention.geometry import Geometry
from kernels.window_attention.triton_tiles import (
    KEY,
    Tiles,
    common,
    configs,
    dense_bias,
    in_one_tile,
    load_pairs,
    load_places,
    load_tokens,
    masked_scores,
    place_of_program,
)

FORWARD_TILES: Tiles = ((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 2), (128, 32, 4, 3))
ONE_TILE_FORWARD = ((4, 4, 1), (8, 4, 2), (8, 4, 3), (2, 4, 1))
"""(windows per program, warps, stages)."""


@triton.jit
def _attend(
    q,
    region_q,
    peak,
    total,
    acc,
    start,
    rows,
    regions,
    k_base,
    v_base,
    k_pad,
    v_pad,
    bias,
    first_query,
    dim,
    scale,
    N: tl.constexpr,
    P: tl.constexpr,
    STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add one key tile to the online softmax."""
    row, region, _ = load_places(rows, regions, start, BLOCK_K, N)
    k = load_tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = load_tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = masked_scores(scores + load_pairs(bias, first_query, start, P, BLOCK_M, BLOCK_K), region_q, region, SHIFTED)
    higher = tl.maximum(peak, tl.max(scores, 1))
    shrink = tl.exp2(peak - higher)
    p = tl.exp2(scores - higher[:, None])
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return higher, total, acc


@triton.jit
def _forward_kernel(
    qkv,
    bias,
    pad,
    rows,
    regions,
    out,
    lse,
    tokens,
    windows,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute one tile of queries of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = place_of_program(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        regions += window * N
    bias += head * P * P
    q_base = qkv + sample * tokens * STRIDE + head * HEAD_DIM
    k_base, v_base = q_base + HEADS * HEAD_DIM, q_base + 2 * HEADS * HEAD_DIM
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM

    row, region, within = load_places(rows, regions, tile * BLOCK_M, BLOCK_M, N)
    q = load_tokens(q_base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
    peak = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so that a first tile without a pair gives no inf - inf
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N, BLOCK_K):
        peak, total, acc = _attend(
            q,
            region,
            peak,
            total,
            acc,
            start,
            rows,
            regions,
            k_base,
            v_base,
            k_pad,
            v_pad,
            bias,
            tile * BLOCK_M,
            dim,
            scale,
            N,
            P,
            STRIDE,
            HEAD_DIM,
            PADDED,
            SHIFTED,
            BLOCK_M,
            BLOCK_K,
        )
    _store_out(out, lse, acc, peak, total, row, within, dim, sample * tokens, head, HEADS, HEAD_DIM)


@triton.jit
def _store_out(out, lse, acc, peak, total, row, within, dim, first_token, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr):
    real = within & (row >= 0)
    out += first_token * HEADS * HEAD_DIM + head * HEAD_DIM
    place = row[:, None] * (HEADS * HEAD_DIM) + dim[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=real[:, None] & (dim < HEAD_DIM)[None, :])
    tl.store(lse + first_token * HEADS + row * HEADS + head, peak + tl.log2(total), mask=real)


@triton.jit
def _forward_one_tile_kernel(
    qkv,
    bias,
    pad,
    rows,
    regions,
    out,
    lse,
    tokens,
    windows,
    batch_windows,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Compute GROUP windows of one head, each in one tile, with their bias in registers."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    head, part = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    pairs = load_pairs(bias + head * P * P, 0, 0, P, BLOCK, BLOCK)
    for batch_window in range(part * GROUP, tl.minimum((part + 1) * GROUP, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        row, region, within = load_places(rows + window * N, window_regions, 0, BLOCK, N)
        base = qkv + sample * tokens * STRIDE + head * HEAD_DIM
        q = load_tokens(base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
        k = load_tokens(base + HEADS * HEAD_DIM, row, dim, pad + HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
        v = load_tokens(base + 2 * HEADS * HEAD_DIM, row, dim, pad + 2 * HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
        scores = masked_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + pairs, region, region, SHIFTED)
        peak = tl.max(scores, 1)
        p = tl.exp2(scores - peak[:, None])
        acc = tl.dot(p.to(v.dtype), v, input_precision="ieee")
        _store_out(out, lse, acc, peak, tl.sum(p, 1), row, within, dim, sample * tokens, head, HEADS, HEAD_DIM)


def forward(qkv: Tensor, table: Tensor, pad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return output and base-2 log-sum-exp.

    Args:
        qkv: (B, T, 3, h, d), contiguous.
        table: (R, h); pad: (3, h, d), what padding is.

    Returns:
        (B, T, h, d) of the dtype of ``qkv``; (B, T, h) float32.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    out = torch.empty(batch, tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(batch, tokens, heads, dtype=torch.float32, device=qkv.device)
    arguments, constants = common(qkv, pad, geometry)
    windows, places = geometry.rows_nN.shape
    arguments |= {"bias": dense_bias(table, qkv.dtype, geometry), "out": out, "lse": lse}
    if in_one_tile(places, qkv.dtype):
        launch(
            _forward_one_tile_kernel,
            lambda c: (triton.cdiv(batch * windows, c["GROUP"]) * heads,),
            _one_tile_forward_configs(places),
            KEY,
            {**arguments, "batch_windows": batch * windows},
            size=batch * windows,
            **constants,
        )
    else:
        launch(
            _forward_kernel,
            lambda c: (batch * windows * heads * triton.cdiv(places, c["BLOCK_M"]),),
            configs(FORWARD_TILES, places, qkv.dtype),
            KEY,
            arguments,
            size=batch * windows,
            **constants,
        )
    return out, lse


@cache
def _one_tile_forward_configs(places: int) -> tuple[triton.Config, ...]:
    whole = max(16, triton.next_power_of_2(places))
    return tuple(
        triton.Config({"BLOCK": whole, "GROUP": group}, num_warps=warps, num_stages=stages)
        for group, warps, stages in ONE_TILE_FORWARD
    )
