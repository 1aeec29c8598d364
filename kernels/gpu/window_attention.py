"""Shifted window attention with a trainable relative-position bias, forward and backward, as Triton kernels.

Roll, partition, mask and reverse are address arithmetic; no window tensor and no score tensor is made. Two small integer tables,
shared by all samples and heads, carry the geometry:

- ``rows`` (n, N): the token of each place of each window within its sample, -1 for padding.
- ``regions`` (n or 1, N): places of different regions of a shifted window may not attend.

The bias of every pair of places is laid out once a call, (h, P, P), since a gather from the table for every score is the slowest
thing that a score can need: it took three quarters of the time (benchmarks/results). Its columns past the window hold -inf, so
keys need no bounds check. Float16 and bfloat16 have it in float16, whose rounding is below that of their scores.

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

from kernels.gpu.launch import launch
from kernels.windows import Geometry, middle_row

LOG2E: float = 1.4426950408889634
ONE_TILE, ONE_TILE_FLOAT32 = 64, 32
"""Windows of up to so many tokens are computed in one tile; float32 needs twice the registers."""


@triton.jit
def _place(pid, windows, HEADS: tl.constexpr, TILES: tl.constexpr):
    """Tile, head, window of the batch, window of the sample, sample."""
    tile = pid % TILES
    head = pid // TILES % HEADS
    batch_window = pid // (TILES * HEADS)
    return tile, head, batch_window % windows, (batch_window // windows).to(tl.int64)


@triton.jit
def _tokens(base, row, dim, pad, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr):
    """(places, d) of the tokens ``row``; padding reads the vector ``pad``."""
    known = dim[None, :] < HEAD_DIM
    if PADDED:
        x = tl.load(base + row[:, None] * STRIDE + dim[None, :], mask=known & (row >= 0)[:, None], other=0.0)
        padding = tl.load(pad + dim, mask=dim < HEAD_DIM, other=0.0)
        x = tl.where((row < 0)[:, None], padding[None, :], x)
    else:
        x = tl.load(base + row[:, None] * STRIDE + dim[None, :], mask=known, other=0.0)
    return x


@triton.jit
def _places(rows, regions, start, BLOCK: tl.constexpr, N: tl.constexpr):
    """Token, region and existence of BLOCK places from ``start``; places past the window repeat its last."""
    place = start + tl.arange(0, BLOCK)
    within = place < N
    place = tl.minimum(place, N - 1)
    return tl.load(rows + place), tl.load(regions + place), within


@triton.jit
def _pairs(bias, first_row, first_column, P: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Bias of a tile of pairs."""
    row, column = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS)
    return tl.load(bias + row[:, None] * P + column[None, :])


@triton.jit
def _masked(scores, row_regions, column_regions, SHIFTED: tl.constexpr):
    """Scores of pairs within a region."""
    if SHIFTED:
        scores = tl.where(row_regions[:, None] == column_regions[None, :], scores, float("-inf"))
    return scores


@triton.jit
def _dense_bias_kernel(
    table, codes, dense,
    N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, MIDDLE: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of the bias of every pair of places, queries by keys or the other way round, times log2(e)."""
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


@triton.jit
def _attend(
    q, region_q, peak, total, acc, start, rows, regions, k_base, v_base, k_pad, v_pad, bias, first_query, dim, scale,
    N: tl.constexpr, P: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One key tile of the online softmax."""
    row, region, _ = _places(rows, regions, start, BLOCK_K, N)
    k = _tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = _masked(scores + _pairs(bias, first_query, start, P, BLOCK_M, BLOCK_K), region_q, region, SHIFTED)
    higher = tl.maximum(peak, tl.max(scores, 1))
    shrink = tl.exp2(peak - higher)
    p = tl.exp2(scores - higher[:, None])
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return higher, total, acc


@triton.jit
def _forward_kernel(
    qkv, bias, pad, rows, regions, out, lse, tokens, windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program computes one tile of queries of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        regions += window * N
    bias += head * P * P
    q_base = qkv + sample * tokens * STRIDE + head * HEAD_DIM
    k_base, v_base = q_base + HEADS * HEAD_DIM, q_base + 2 * HEADS * HEAD_DIM
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM

    row, region, within = _places(rows, regions, tile * BLOCK_M, BLOCK_M, N)
    q = _tokens(q_base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
    peak = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so that a first tile without a pair gives no inf - inf
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N, BLOCK_K):
        peak, total, acc = _attend(q, region, peak, total, acc, start, rows, regions, k_base, v_base, k_pad, v_pad, bias,
                                   tile * BLOCK_M, dim, scale, N, P, STRIDE, HEAD_DIM, PADDED, SHIFTED, BLOCK_M,
                                   BLOCK_K)  # fmt: skip
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
    qkv, bias, pad, rows, regions, out, lse, tokens, windows, batch_windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A program computes GROUP windows of one head, each in one tile, with their bias in registers."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    head, part = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    pairs = _pairs(bias + head * P * P, 0, 0, P, BLOCK, BLOCK)
    for batch_window in range(part * GROUP, tl.minimum((part + 1) * GROUP, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        row, region, within = _places(rows + window * N, window_regions, 0, BLOCK, N)
        base = qkv + sample * tokens * STRIDE + head * HEAD_DIM
        q = _tokens(base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
        k = _tokens(base + HEADS * HEAD_DIM, row, dim, pad + HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
        v = _tokens(base + 2 * HEADS * HEAD_DIM, row, dim, pad + 2 * HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
        scores = _masked(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + pairs, region, region, SHIFTED)
        peak = tl.max(scores, 1)
        p = tl.exp2(scores - peak[:, None])
        acc = tl.dot(p.to(v.dtype), v, input_precision="ieee")
        _store_out(out, lse, acc, peak, tl.sum(p, 1), row, within, dim, sample * tokens, head, HEADS, HEAD_DIM)


@triton.jit
def _queries(
    q_base, q_pad, out_base, dout_base, lse_base, row, within, dim,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """What the backward pass needs of its queries: q, gradient of the output, log-sum-exp and delta = sum(out * gradient).

    A query that is padding, or past the window, has an infinite log-sum-exp: its probabilities are zero.
    """
    q = _tokens(q_base, row, dim, q_pad, 3 * HEADS * HEAD_DIM, HEAD_DIM, PADDED)
    real = within & (row >= 0)
    mask = real[:, None] & (dim < HEAD_DIM)[None, :]
    place = row[:, None] * (HEADS * HEAD_DIM) + dim[None, :]
    dout = tl.load(dout_base + place, mask=mask, other=0.0)
    out = tl.load(out_base + place, mask=mask, other=0.0)
    lse = tl.load(lse_base + row * HEADS, mask=real, other=float("inf"))
    return q, dout, lse, tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)


@triton.jit
def _store(base, row, real, dim, x, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr):
    mask = real[:, None] & (dim < HEAD_DIM)[None, :]
    tl.store(base + row[:, None] * STRIDE + dim[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _backward_one_tile_kernel(
    qkv, bias, pad, rows, regions, lse, dout, dqkv, dbias, dpad, tokens, windows, batch_windows, group, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program differentiates a group of windows, each in one tile, and sums their bias gradient in registers.

    Scores are computed keys by queries, so that all three products take them as they are. With all keys at hand, delta is
    sum(p * dp) over them: the output is not read.
    """
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    head, part = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM
    place = tl.arange(0, BLOCK)
    pairs_KM = _pairs(bias + head * P * P, 0, 0, P, BLOCK, BLOCK)
    dbias_KM = tl.zeros([BLOCK, BLOCK], tl.float32)
    dk_pad, dv_pad = tl.zeros([DIM], tl.float32), tl.zeros([DIM], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        row, region, within = _places(rows + window * N, window_regions, 0, BLOCK, N)
        base = sample * tokens * STRIDE + head * HEAD_DIM
        real = within & (row >= 0)
        q = _tokens(qkv + base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
        k = _tokens(qkv + base + HEADS * HEAD_DIM, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
        v = _tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
        do = tl.load(dout + sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM + row[:, None] * (HEADS * HEAD_DIM) + dim[None, :],
                     mask=real[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)  # fmt: skip
        lse_M = tl.load(lse + sample * tokens * HEADS + head + row * HEADS, mask=real, other=float("inf"))
        scores_KM = _masked(tl.dot(k, tl.trans(q), input_precision="ieee") * scale + pairs_KM, region, region, SHIFTED)
        p_KM = tl.exp2(scores_KM - lse_M[None, :])
        dv = tl.dot(p_KM.to(do.dtype), do, input_precision="ieee")
        dp_KM = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds_KM = p_KM * (dp_KM - tl.sum(p_KM * dp_KM, 0)[None, :])
        dbias_KM += ds_KM
        ds_KM = ds_KM.to(q.dtype)
        dk = tl.dot(ds_KM, q, input_precision="ieee") * head_scale
        # Not dot(trans(ds), k): ptxas 12.8 miscompiles a transposed wgmma result as left operand (flash-linear-attention 826).
        dq = tl.trans(tl.dot(tl.trans(k), ds_KM, input_precision="ieee")) * head_scale
        _store(dqkv + base, row, real, dim, dq, STRIDE, HEAD_DIM)
        _store(dqkv + base + HEADS * HEAD_DIM, row, real, dim, dk, STRIDE, HEAD_DIM)
        _store(dqkv + base + 2 * HEADS * HEAD_DIM, row, real, dim, dv, STRIDE, HEAD_DIM)
        if PADDED:
            hidden = (within & (row < 0))[:, None]
            dk_pad += tl.sum(tl.where(hidden, dk, 0.0), 0)
            dv_pad += tl.sum(tl.where(hidden, dv, 0.0), 0)
    within = place < N
    dbias += (part * HEADS + head).to(tl.int64) * N * N
    tl.store(dbias + place[:, None] * N + place[None, :], dbias_KM, mask=within[:, None] & within[None, :])
    if PADDED:
        dpad += (part * HEADS + head) * 2 * HEAD_DIM
        tl.store(dpad + dim, dk_pad, mask=dim < HEAD_DIM)
        tl.store(dpad + HEAD_DIM + dim, dv_pad, mask=dim < HEAD_DIM)


@triton.jit
def _score_gradient(
    q, do, lse_M, delta_M, region_q, pairs, start, rows, regions, k_base, v_base, k_pad, v_pad, dim, scale,
    N: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores of one key tile, queries by keys, and the keys."""
    row, region, _ = _places(rows, regions, start, BLOCK_K, N)
    k = _tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores_MK = _masked(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + pairs, region_q, region, SHIFTED)
    p_MK = tl.exp2(scores_MK - lse_M[:, None])
    dp_MK = tl.dot(do, tl.trans(v), input_precision="ieee")
    return p_MK * (dp_MK - delta_M[:, None]), k


@triton.jit
def _backward_queries_kernel(
    qkv, bias, pad, rows, regions, out, lse, dout, dqkv, delta, tokens, windows, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries of one window and head, and delta for the kernels after it."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        regions += window * N
    bias += head * P * P
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM
    base = sample * tokens * STRIDE + head * HEAD_DIM
    k_base, v_base = qkv + base + HEADS * HEAD_DIM, qkv + base + 2 * HEADS * HEAD_DIM
    out_base = sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    stat_base = sample * tokens * HEADS + head
    row, region, within = _places(rows, regions, tile * BLOCK_M, BLOCK_M, N)
    q, do, lse_M, delta_M = _queries(qkv + base, pad, out + out_base, dout + out_base, lse + stat_base, row, within, dim,
                                     HEADS, HEAD_DIM, PADDED)  # fmt: skip
    real = within & (row >= 0)
    tl.store(delta + stat_base + row * HEADS, delta_M, mask=real)
    dq = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N, BLOCK_K):
        pairs = _pairs(bias, tile * BLOCK_M, start, P, BLOCK_M, BLOCK_K)
        ds, k = _score_gradient(q, do, lse_M, delta_M, region, pairs, start, rows, regions, k_base, v_base, k_pad, v_pad, dim,
                                scale, N, STRIDE, HEAD_DIM, PADDED, SHIFTED, BLOCK_K)  # fmt: skip
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dqkv + base, row, real, dim, dq * head_scale, STRIDE, HEAD_DIM)


@triton.jit
def _backward_bias_kernel(
    qkv, bias, pad, rows, regions, lse, delta, dout, dbias, tokens, windows, batch_windows, group, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Score gradients of one tile of pairs, summed over a group of windows in registers."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES_K: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    TILES: tl.constexpr = TILES_K * ((N + BLOCK_M - 1) // BLOCK_M)
    tile, head = tl.program_id(0) % TILES, tl.program_id(0) // TILES % HEADS
    part = tl.program_id(0) // (TILES * HEADS)
    first_query, first_key = tile // TILES_K * BLOCK_M, tile % TILES_K * BLOCK_K
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    pairs = _pairs(bias + head * P * P, first_query, first_key, P, BLOCK_M, BLOCK_K)
    dbias_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        base = sample * tokens * STRIDE + head * HEAD_DIM
        stat_base = sample * tokens * HEADS + head
        row, region, within = _places(rows + window * N, window_regions, first_query, BLOCK_M, N)
        q, do, lse_M, delta_M = _known_queries(qkv + base, pad, dout + sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM,
                                               lse + stat_base, delta + stat_base, row, within, dim, HEADS, HEAD_DIM,
                                               PADDED)  # fmt: skip
        ds, _ = _score_gradient(q, do, lse_M, delta_M, region, pairs, first_key, rows + window * N, window_regions,
                                qkv + base + HEADS * HEAD_DIM, qkv + base + 2 * HEADS * HEAD_DIM, pad + HEADS * HEAD_DIM,
                                pad + 2 * HEADS * HEAD_DIM, dim, scale, N, STRIDE, HEAD_DIM, PADDED, SHIFTED,
                                BLOCK_K)  # fmt: skip
        dbias_MK += ds
    query, key = first_query + tl.arange(0, BLOCK_M), first_key + tl.arange(0, BLOCK_K)
    dbias += (part * HEADS + head).to(tl.int64) * N * N
    tl.store(dbias + query[:, None] * N + key[None, :], dbias_MK, mask=(query < N)[:, None] & (key < N)[None, :])


@triton.jit
def _known_queries(
    q_base, q_pad, dout_base, lse_base, delta_base, row, within, dim,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """As :func:`_queries`, where delta is there already."""
    q = _tokens(q_base, row, dim, q_pad, 3 * HEADS * HEAD_DIM, HEAD_DIM, PADDED)
    real = within & (row >= 0)
    place = row[:, None] * (HEADS * HEAD_DIM) + dim[None, :]
    do = tl.load(dout_base + place, mask=real[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    lse_M = tl.load(lse_base + row * HEADS, mask=real, other=float("inf"))
    return q, do, lse_M, tl.load(delta_base + row * HEADS, mask=real, other=0.0)


@triton.jit
def _key_gradients(
    k, v, region_k, dk, dv, start, rows, regions, q_base, q_pad, dout_base, lse_base, delta_base, bias, first_key, dim, scale,
    N: tl.constexpr, P: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dK and dV so far, with one more tile of queries; scores are keys by queries, so that nothing is transposed."""
    row, region, within = _places(rows, regions, start, BLOCK_M, N)
    q, do, lse_M, delta_M = _known_queries(q_base, q_pad, dout_base, lse_base, delta_base, row, within, dim, HEADS, HEAD_DIM,
                                           PADDED)  # fmt: skip
    scores_KM = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
    scores_KM = _masked(scores_KM + _pairs(bias, first_key, start, P, BLOCK_K, BLOCK_M), region_k, region, SHIFTED)
    p_KM = tl.exp2(scores_KM - lse_M[None, :])
    dv = tl.dot(p_KM.to(do.dtype), do, dv, input_precision="ieee")
    dp_KM = tl.dot(v, tl.trans(do), input_precision="ieee")
    ds_KM = p_KM * (dp_KM - delta_M[None, :])
    return tl.dot(ds_KM.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def _backward_keys_kernel(
    qkv, bias, pad, rows, regions, lse, delta, dout, dqkv, dpad, tokens, windows, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, PAD_TILES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        regions += window * N
    bias += head * P * P
    pad += head * HEAD_DIM
    base = sample * tokens * STRIDE + head * HEAD_DIM
    dout += sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    stat_base = sample * tokens * HEADS + head
    row, region, within = _places(rows, regions, tile * BLOCK_K, BLOCK_K, N)
    k = _tokens(qkv + base + HEADS * HEAD_DIM, row, dim, pad + HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, pad + 2 * HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    dk, dv = tl.zeros([BLOCK_K, DIM], tl.float32), tl.zeros([BLOCK_K, DIM], tl.float32)
    for start in range(0, N, BLOCK_M):
        dk, dv = _key_gradients(k, v, region, dk, dv, start, rows, regions, qkv + base, pad, dout, lse + stat_base,
                                delta + stat_base, bias, tile * BLOCK_K, dim, scale, N, P, HEADS, HEAD_DIM, PADDED, SHIFTED,
                                BLOCK_K, BLOCK_M)  # fmt: skip
    dk *= head_scale
    real = within & (row >= 0)
    _store(dqkv + base + HEADS * HEAD_DIM, row, real, dim, dk, STRIDE, HEAD_DIM)
    _store(dqkv + base + 2 * HEADS * HEAD_DIM, row, real, dim, dv, STRIDE, HEAD_DIM)
    if PADDED:
        hidden = (within & (row < 0))[:, None]
        dpad += (tl.program_id(0) // TILES).to(tl.int64) * PAD_TILES * 2 * HEAD_DIM + dim
        tl.store(dpad + tile * 2 * HEAD_DIM, tl.sum(tl.where(hidden, dk, 0.0), 0), mask=dim < HEAD_DIM)
        tl.store(dpad + (tile * 2 + 1) * HEAD_DIM, tl.sum(tl.where(hidden, dv, 0.0), 0), mask=dim < HEAD_DIM)
        if tile == TILES - 1:  # slots that smaller tiles would use
            for slot in tl.static_range(2 * TILES, 2 * PAD_TILES):
                tl.store(dpad + slot * HEAD_DIM, tl.zeros([DIM], tl.float32), mask=dim < HEAD_DIM)


@triton.jit
def _table_gradient_kernel(
    dbias, dtable, query_stride, key_stride,
    N: tl.constexpr, R: tl.constexpr, HEADS: tl.constexpr, MIDDLE: tl.constexpr, SPAN_H: tl.constexpr, SPAN_W: tl.constexpr,
    USED_D: tl.constexpr, USED_H: tl.constexpr, USED_W: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Some rows of the table: each is the sum over the pairs (query, key) of a window that are that offset apart."""
    TILES: tl.constexpr = (R + BLOCK_R - 1) // BLOCK_R
    head = tl.program_id(0) // TILES
    entry = tl.program_id(0) % TILES * BLOCK_R + tl.arange(0, BLOCK_R)
    # Digits of the offset query - key, each less its largest value.
    offset_d = (entry // (SPAN_H * SPAN_W) - MIDDLE // (SPAN_H * SPAN_W))[:, None]
    offset_h = (entry // SPAN_W % SPAN_H - SPAN_H // 2)[:, None]
    offset_w = (entry % SPAN_W - SPAN_W // 2)[:, None]
    total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, N, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        query_d = (key // (USED_H * USED_W))[None, :] + offset_d
        query_h = (key // USED_W % USED_H)[None, :] + offset_h
        query_w = (key % USED_W)[None, :] + offset_w
        inside = (query_d >= 0) & (query_d < USED_D) & (query_h >= 0) & (query_h < USED_H) & (query_w >= 0) & (query_w < USED_W)
        query = (query_d * USED_H + query_h) * USED_W + query_w
        pairs = dbias + head * N * N + query * query_stride + key[None, :] * key_stride
        total += tl.sum(tl.load(pairs, mask=inside & (key < N)[None, :], other=0.0), 1)
    tl.store(dtable + entry * HEADS + head, total, mask=entry < R)


def forward(qkv: Tensor, table: Tensor, pad: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Output and base-2 log-sum-exp.

    Args:
        qkv: (B, T, 3, h, d), contiguous.
        table: (R, h); pad: (3, h, d), what padding is.

    Returns:
        (B, T, h, d) of the dtype of ``qkv``; (B, T, h) float32.
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    out = torch.empty(batch, tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    lse = torch.empty(batch, tokens, heads, dtype=torch.float32, device=qkv.device)
    arguments, constants = _common(qkv, pad, geometry)
    windows, places = geometry.rows_nN.shape
    arguments |= {"bias": _dense_bias(table, qkv.dtype, geometry), "out": out, "lse": lse}
    if _in_one_tile(places, qkv.dtype):
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
            _configs(FORWARD_TILES, places, qkv.dtype),
            KEY,
            arguments,
            size=batch * windows,
            **constants,
        )
    return out, lse


def backward(
    dout: Tensor, qkv: Tensor, table: Tensor, pad: Tensor, out: Tensor, lse: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``qkv``, ``table`` and ``pad``, in their shapes and dtypes."""
    windows, places = geometry.rows_nN.shape
    heads, head_dim = qkv.shape[-2:]
    dqkv = torch.empty_like(qkv)
    arguments, constants = _common(qkv, pad, geometry)
    arguments |= {"lse": lse, "dout": dout.contiguous(), "dqkv": dqkv, "head_scale": head_dim**-0.5}
    bias_by_key = _dense_bias(table, qkv.dtype, geometry, transposed=True)
    if _in_one_tile(places, qkv.dtype):
        dbias, dpad_kv = _backward_one_tile(arguments | {"bias": bias_by_key}, constants, len(qkv) * windows)
        query_stride, key_stride = 1, places
    else:
        bias = _dense_bias(table, qkv.dtype, geometry)
        dbias, dpad_kv = _backward_tiles(arguments | {"out": out}, bias, bias_by_key, constants, len(qkv) * windows)
        query_stride, key_stride = places, 1
    dtable = torch.empty(len(table), heads, dtype=torch.float32, device=qkv.device)
    window, used = geometry.window, geometry.used
    launch(
        _table_gradient_kernel,
        lambda c: (triton.cdiv(len(table), c["BLOCK_R"]) * heads,),
        [triton.Config({"BLOCK_R": 32, "BLOCK_K": 64}, num_warps=4)],
        (),
        {"dbias": dbias.sum(0), "dtable": dtable, "query_stride": query_stride, "key_stride": key_stride},
        N=places, R=len(table), HEADS=heads, MIDDLE=middle_row(window),
        SPAN_H=2 * window[1] - 1, SPAN_W=2 * window[2] - 1, USED_D=used[0], USED_H=used[1], USED_W=used[2],
    )  # fmt: skip
    dpad = torch.zeros_like(pad)
    if geometry.padded:
        dpad[1:] = dpad_kv.to(pad.dtype).permute(1, 0, 2)
    return dqkv, dtable.to(table.dtype), dpad


def _backward_one_tile(arguments: dict[str, Any], constants: dict[str, Any], batch_windows: int) -> tuple[Tensor, Tensor]:
    """Every window in one tile; bias gradient of every group, keys by queries (parts, h, N, N), and of the padding (h, 2, d)."""
    heads, head_dim, places = constants["HEADS"], constants["HEAD_DIM"], constants["N"]
    parts, group = _parts(batch_windows, heads, 1024)
    dbias, dpad = _partials(arguments, constants, parts, (parts, heads, 2, head_dim))
    launch(
        _backward_one_tile_kernel,
        lambda c: (parts * heads,),
        _one_tile_configs(places),
        KEY,
        {**arguments, "dbias": dbias, "dpad": dpad, "batch_windows": batch_windows, "group": group},
        size=batch_windows,
        **constants,
    )
    return dbias, dpad.sum(0)


def _backward_tiles(
    arguments: dict[str, Any], bias: Tensor, bias_by_key: Tensor, constants: dict[str, Any], batch_windows: int
) -> tuple[Tensor, Tensor]:
    """First dQ, then dK and dV, then the bias gradient; returns as :func:`_backward_one_tile`, queries by keys."""
    heads, head_dim, places = constants["HEADS"], constants["HEAD_DIM"], constants["N"]
    dtype = arguments["qkv"].dtype
    parts, group = _parts(batch_windows, heads * triton.cdiv(places, 128) ** 2, 512)
    pad_tiles = triton.cdiv(places, SMALLEST_KEYS)
    dbias, dpad = _partials(arguments, constants, parts, (batch_windows, heads, pad_tiles, 2, head_dim))
    out, dqkv, head_scale = (arguments.pop(name) for name in ("out", "dqkv", "head_scale"))
    arguments["delta"] = torch.empty_like(arguments["lse"])
    launch(
        _backward_queries_kernel,
        lambda c: (batch_windows * heads * triton.cdiv(places, c["BLOCK_M"]),),
        _configs(QUERY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias, "out": out, "dqkv": dqkv, "head_scale": head_scale},
        size=batch_windows,
        **constants,
    )
    launch(
        _backward_keys_kernel,
        lambda c: (batch_windows * heads * triton.cdiv(places, c["BLOCK_K"]),),
        _configs(KEY_BACKWARD_TILES if head_dim <= 32 else WIDE_KEY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias_by_key, "dqkv": dqkv, "dpad": dpad, "head_scale": head_scale},
        size=batch_windows,
        **constants,
        PAD_TILES=pad_tiles,
    )
    launch(
        _backward_bias_kernel,
        lambda c: (parts * heads * triton.cdiv(places, c["BLOCK_M"]) * triton.cdiv(places, c["BLOCK_K"]),),
        _configs(BIAS_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias, "dbias": dbias, "batch_windows": batch_windows, "group": group},
        size=batch_windows,
        **constants,
    )
    return dbias, dpad.sum((0, 2)) if dpad.numel() else dpad


def _common(qkv: Tensor, pad: Tensor, geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of every kernel."""
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


def _in_one_tile(places: int, dtype: torch.dtype) -> bool:
    return places <= (ONE_TILE_FLOAT32 if dtype == torch.float32 else ONE_TILE)


def _pitch(places: int, dtype: torch.dtype) -> int:
    """Side of the dense bias: no tile of pairs reaches beyond."""
    return max(16, triton.next_power_of_2(places)) if _in_one_tile(places, dtype) else triton.cdiv(places, 128) * 128


def _dense_bias(table: Tensor, dtype: torch.dtype, geometry: Geometry, transposed: bool = False) -> Tensor:
    """(h, P, P), queries by keys or ``transposed``, for inputs of ``dtype``."""
    places, heads = geometry.rows_nN.shape[1], table.shape[1]
    side = _pitch(places, dtype)
    dense = torch.empty(heads, side, side, dtype=torch.float32 if dtype == torch.float32 else torch.float16, device=table.device)
    launch(
        _dense_bias_kernel,
        lambda c: (heads * (side // c["BLOCK"]) ** 2,),
        [triton.Config({"BLOCK": min(64, side)}, num_warps=4)],
        (),
        {"table": table.contiguous(), "codes": geometry.codes_N, "dense": dense},
        N=places, P=side, HEADS=heads, MIDDLE=middle_row(geometry.window), TRANSPOSED=transposed,
    )  # fmt: skip
    return dense


def _parts(batch_windows: int, programs: int, wanted: int) -> tuple[int, int]:
    """Groups of windows and windows of a group: some ``wanted`` programs, the same on every device so that sums are."""
    parts = min(batch_windows, max(1, wanted // programs))
    group = triton.cdiv(batch_windows, parts)
    return triton.cdiv(batch_windows, group), group


def _partials(arguments: dict[str, Any], constants: dict[str, Any], parts: int, padding: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Room for the bias gradients of the groups and, where there is padding, for its gradients."""
    shape = (parts, constants["HEADS"], constants["N"], constants["N"])
    device = arguments["qkv"].device
    dbias = torch.empty(shape, dtype=torch.float32, device=device)
    return dbias, torch.empty(padding if constants["PADDED"] else 0, dtype=torch.float32, device=device)


# Tiles as (queries, keys, warps, stages), the first being the safe choice. Float32 has tiles of its own: its products run on the
# scalar units, where large tiles do not fit the registers. None of them spills (kernels/gpu/compile_check.py).
Tiles = tuple[tuple[int, int, int, int], ...]
KEY = ("N", "HEAD_DIM", "HEADS", "PADDED", "SHIFTED")
FORWARD_TILES: Tiles = ((64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 32, 4, 2), (128, 32, 4, 3))
QUERY_BACKWARD_TILES: Tiles = ((64, 32, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 1))
KEY_BACKWARD_TILES: Tiles = ((32, 64, 4, 1), (64, 64, 4, 1), (32, 64, 4, 3), (32, 128, 4, 1))
WIDE_KEY_BACKWARD_TILES: Tiles = ((32, 64, 4, 1), (32, 64, 4, 3))
"""For heads of more than 32 numbers, with which the larger tiles spill on an sm_80."""
BIAS_BACKWARD_TILES: Tiles = ((64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2))
FLOAT32_TILES: Tiles = ((32, 16, 8, 1),)
SMALLEST_KEYS = 16
"""No tile has fewer keys."""
ONE_TILE_BACKWARD = ((4, 1), (4, 2), (4, 3))
"""Warps, stages."""
ONE_TILE_FORWARD = ((4, 4, 1), (8, 4, 2), (8, 4, 3), (2, 4, 1))
"""Windows of a program, warps, stages."""


@cache
def _configs(tiles: Tiles, places: int, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    """Configurations that suit a window of so many places, without repetition."""
    whole = max(16, triton.next_power_of_2(places))
    configs: dict[str, triton.Config] = {}
    for queries, keys, warps, stages in FLOAT32_TILES if dtype == torch.float32 else tiles:
        blocks = {"BLOCK_M": min(queries, whole), "BLOCK_K": min(keys, whole)}
        config = triton.Config(blocks, num_warps=warps, num_stages=stages)
        configs.setdefault(str(config), config)
    return tuple(configs.values())


@cache
def _one_tile_configs(places: int) -> tuple[triton.Config, ...]:
    """As :func:`_configs` for windows in one tile."""
    whole = max(16, triton.next_power_of_2(places))
    return tuple(triton.Config({"BLOCK": whole}, num_warps=warps, num_stages=stages) for warps, stages in ONE_TILE_BACKWARD)


@cache
def _one_tile_forward_configs(places: int) -> tuple[triton.Config, ...]:
    whole = max(16, triton.next_power_of_2(places))
    return tuple(
        triton.Config({"BLOCK": whole, "GROUP": group}, num_warps=warps, num_stages=stages)
        for group, warps, stages in ONE_TILE_FORWARD
    )
