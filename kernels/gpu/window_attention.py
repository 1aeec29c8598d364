"""Shifted window attention with a trainable relative-position bias, forward and backward, as Triton kernels.

Roll, partition, mask, bias gather and reverse are address arithmetic; no window tensor and no score tensor is made. Two small
integer tables, shared by all samples and heads, carry the geometry:

- ``rows`` (n, N): the token of each place of each window within its sample, -1 for padding.
- ``codes`` (n or 1, N): a place's number such that ``code[query] - code[key] + middle`` is the row of the bias table. Shifted
  windows add the region times a number so large that pairs of different regions leave the table: one comparison is mask and
  bounds check.

Everything is computed in base 2 (exp2, log2): the scale and the bias carry a factor log2(e).

Shape letters: B samples, n windows of a sample, N tokens of a window, T tokens of a sample, h heads, d head size, R bias rows.
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
ONE_TILE = 64
"""Windows of up to so many tokens are differentiated in one tile."""


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
def _bias(table, index, R: tl.constexpr, CHECKED: tl.constexpr):
    """Bias of every pair; pairs outside the table may not attend."""
    if CHECKED:
        bias = tl.load(table + index, mask=(index >= 0) & (index < R), other=float("-inf"))
    else:
        bias = tl.load(table + index)
    return bias


@triton.jit
def _places(rows, codes, start, BLOCK: tl.constexpr, N: tl.constexpr):
    """Token, code and existence of BLOCK places from ``start``; places past the window repeat its last."""
    place = start + tl.arange(0, BLOCK)
    within = place < N
    place = tl.minimum(place, N - 1)
    return tl.load(rows + place), tl.load(codes + place), within


@triton.jit
def _keys(rows, codes, start, BLOCK: tl.constexpr, N: tl.constexpr):
    """Token and code of BLOCK keys from ``start``; the code of a place past the window leads off the bias table."""
    row, code, within = _places(rows, codes, start, BLOCK, N)
    return row, tl.where(within, code, -(1 << 28)), within


@triton.jit
def _attend(
    q, code_q, peak, total, acc, start, rows, codes, k_base, v_base, k_pad, v_pad, table, dim, scale,
    N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, CHECKED: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One key tile of the online softmax."""
    row, code, _ = _keys(rows, codes, start, BLOCK_K, N)
    k = _tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores += _bias(table, code_q[:, None] - code[None, :] + MIDDLE, R, CHECKED)
    higher = tl.maximum(peak, tl.max(scores, 1))
    shrink = tl.exp2(peak - higher)
    p = tl.exp2(scores - higher[:, None])
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return higher, total, acc


@triton.jit
def _forward_kernel(
    qkv, table, pad, rows, codes, out, lse, tokens, windows, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program computes one tile of queries of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    REST: tl.constexpr = N % BLOCK_K
    TAIL: tl.constexpr = 16 if REST <= 16 else 32 if REST <= 32 else 64 if REST <= 64 else 128
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        codes += window * N
    table += head * R
    q_base = qkv + sample * tokens * STRIDE + head * HEAD_DIM
    k_base, v_base = q_base + HEADS * HEAD_DIM, q_base + 2 * HEADS * HEAD_DIM
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM

    row, code, within = _places(rows, codes, tile * BLOCK_M, BLOCK_M, N)
    q = _tokens(q_base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
    peak = tl.full([BLOCK_M], -1e30, tl.float32)  # finite, so that a first tile without a pair gives no inf - inf
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N - REST, BLOCK_K):
        peak, total, acc = _attend(q, code, peak, total, acc, start, rows, codes, k_base, v_base, k_pad, v_pad, table, dim, scale,
                                   N, R, MIDDLE, STRIDE, HEAD_DIM, PADDED, SHIFTED, BLOCK_K)  # fmt: skip
    if REST > 0:
        peak, total, acc = _attend(q, code, peak, total, acc, N - REST, rows, codes, k_base, v_base, k_pad, v_pad, table, dim,
                                   scale, N, R, MIDDLE, STRIDE, HEAD_DIM, PADDED, SHIFTED or REST < TAIL, TAIL)  # fmt: skip

    real = within & (row >= 0)
    out += sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    place = row[:, None] * (HEADS * HEAD_DIM) + dim[None, :]
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=real[:, None] & (dim < HEAD_DIM)[None, :])
    tl.store(lse + sample * tokens * HEADS + row * HEADS + head, peak + tl.log2(total), mask=real)


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
    qkv, table, pad, rows, codes, out, lse, dout, dqkv, dbias, dpad, tokens, windows, batch_windows, group, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program differentiates a group of windows, each in one tile, and sums their bias gradient in registers.

    Scores are computed keys by queries, so that all three products take them as they are.
    """
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    head, part = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    dim = tl.arange(0, DIM)
    table += head * R
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM
    place = tl.arange(0, BLOCK)
    dbias_KM = tl.zeros([BLOCK, BLOCK], tl.float32)
    dk_pad, dv_pad = tl.zeros([DIM], tl.float32), tl.zeros([DIM], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_codes = codes
        if SHIFTED:
            window_codes += window * N
        row, code, within = _places(rows + window * N, window_codes, 0, BLOCK, N)
        base = sample * tokens * STRIDE + head * HEAD_DIM
        out_base = sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
        q, do, lse_M, delta_M = _queries(qkv + base, pad, out + out_base, dout + out_base, lse + sample * tokens * HEADS + head,
                                         row, within, dim, HEADS, HEAD_DIM, PADDED)  # fmt: skip
        k = _tokens(qkv + base + HEADS * HEAD_DIM, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
        v = _tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
        code_k = tl.where(within, code, -(1 << 28))
        scores_KM = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
        scores_KM += _bias(table, code[None, :] - code_k[:, None] + MIDDLE, R, SHIFTED or N < BLOCK)
        p_KM = tl.exp2(scores_KM - lse_M[None, :])
        dv = tl.dot(p_KM.to(do.dtype), do, input_precision="ieee")
        dp_KM = tl.dot(v, tl.trans(do), input_precision="ieee")
        ds_KM = p_KM * (dp_KM - delta_M[None, :])
        dbias_KM += ds_KM
        ds_KM = ds_KM.to(q.dtype)
        dk = tl.dot(ds_KM, q, input_precision="ieee") * head_scale
        # Not dot(trans(ds), k): ptxas 12.8 miscompiles a transposed wgmma result as left operand (flash-linear-attention 826).
        dq = tl.trans(tl.dot(tl.trans(k), ds_KM, input_precision="ieee")) * head_scale
        real = within & (row >= 0)
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
    q, do, lse_M, delta_M, code_q, start, rows, codes, k_base, v_base, k_pad, v_pad, table, dim, scale,
    N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr, STRIDE: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, CHECKED: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores of one key tile, queries by keys, and the keys."""
    row, code, _ = _keys(rows, codes, start, BLOCK_K, N)
    k = _tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores_MK = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores_MK += _bias(table, code_q[:, None] - code[None, :] + MIDDLE, R, CHECKED)
    p_MK = tl.exp2(scores_MK - lse_M[:, None])
    dp_MK = tl.dot(do, tl.trans(v), input_precision="ieee")
    return p_MK * (dp_MK - delta_M[:, None]), k


@triton.jit
def _backward_queries_kernel(
    qkv, table, pad, rows, codes, out, lse, dout, dqkv, delta, tokens, windows, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries of one window and head, and delta for the kernels after it."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    REST: tl.constexpr = N % BLOCK_K
    TAIL: tl.constexpr = 16 if REST <= 16 else 32 if REST <= 32 else 64 if REST <= 64 else 128
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        codes += window * N
    table += head * R
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM
    base = sample * tokens * STRIDE + head * HEAD_DIM
    k_base, v_base = qkv + base + HEADS * HEAD_DIM, qkv + base + 2 * HEADS * HEAD_DIM
    out_base = sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    stat_base = sample * tokens * HEADS + head
    row, code, within = _places(rows, codes, tile * BLOCK_M, BLOCK_M, N)
    q, do, lse_M, delta_M = _queries(qkv + base, pad, out + out_base, dout + out_base, lse + stat_base, row, within, dim,
                                     HEADS, HEAD_DIM, PADDED)  # fmt: skip
    real = within & (row >= 0)
    tl.store(delta + stat_base + row * HEADS, delta_M, mask=real)
    dq = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N - REST, BLOCK_K):
        ds, k = _score_gradient(q, do, lse_M, delta_M, code, start, rows, codes, k_base, v_base, k_pad, v_pad, table, dim, scale,
                                N, R, MIDDLE, STRIDE, HEAD_DIM, PADDED, SHIFTED, BLOCK_K)  # fmt: skip
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    if REST > 0:
        ds, k = _score_gradient(q, do, lse_M, delta_M, code, N - REST, rows, codes, k_base, v_base, k_pad, v_pad, table, dim, scale,
                                N, R, MIDDLE, STRIDE, HEAD_DIM, PADDED, SHIFTED or REST < TAIL, TAIL)  # fmt: skip
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dqkv + base, row, real, dim, dq * head_scale, STRIDE, HEAD_DIM)


@triton.jit
def _backward_bias_kernel(
    qkv, table, pad, rows, codes, lse, delta, dout, dbias, tokens, windows, batch_windows, group, scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr,
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
    table += head * R
    pad += head * HEAD_DIM
    dbias_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_codes = codes
        if SHIFTED:
            window_codes += window * N
        base = sample * tokens * STRIDE + head * HEAD_DIM
        stat_base = sample * tokens * HEADS + head
        row, code, within = _places(rows + window * N, window_codes, first_query, BLOCK_M, N)
        q, do, lse_M, delta_M = _known_queries(qkv + base, pad, dout + sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM,
                                               lse + stat_base, delta + stat_base, row, within, dim, HEADS, HEAD_DIM,
                                               PADDED)  # fmt: skip
        ds, _ = _score_gradient(q, do, lse_M, delta_M, code, first_key, rows + window * N, window_codes,
                                qkv + base + HEADS * HEAD_DIM, qkv + base + 2 * HEADS * HEAD_DIM, pad + HEADS * HEAD_DIM,
                                pad + 2 * HEADS * HEAD_DIM, table, dim, scale, N, R, MIDDLE, STRIDE, HEAD_DIM, PADDED,
                                SHIFTED or N % BLOCK_K > 0, BLOCK_K)  # fmt: skip
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
    k, v, code_k, dk, dv, start, rows, codes, q_base, q_pad, dout_base, lse_base, delta_base, table, dim, scale,
    N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr, CHECKED: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dK and dV so far, with one more tile of queries; scores are keys by queries, so that nothing is transposed."""
    row, code, within = _places(rows, codes, start, BLOCK_M, N)
    q, do, lse_M, delta_M = _known_queries(q_base, q_pad, dout_base, lse_base, delta_base, row, within, dim, HEADS, HEAD_DIM,
                                           PADDED)  # fmt: skip
    scores_KM = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
    scores_KM += _bias(table, code[None, :] - code_k[:, None] + MIDDLE, R, CHECKED)
    p_KM = tl.exp2(scores_KM - lse_M[None, :])
    dv = tl.dot(p_KM.to(do.dtype), do, dv, input_precision="ieee")
    dp_KM = tl.dot(v, tl.trans(do), input_precision="ieee")
    ds_KM = p_KM * (dp_KM - delta_M[None, :])
    return tl.dot(ds_KM.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def _backward_keys_kernel(
    qkv, table, pad, rows, codes, lse, delta, dout, dqkv, dpad, tokens, windows, scale, head_scale,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM: tl.constexpr, N: tl.constexpr, R: tl.constexpr, MIDDLE: tl.constexpr,
    PADDED: tl.constexpr, SHIFTED: tl.constexpr, PAD_TILES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    REST: tl.constexpr = N % BLOCK_M
    TAIL: tl.constexpr = 16 if REST <= 16 else 32 if REST <= 32 else 64 if REST <= 64 else 128
    TILES: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    CHECKED: tl.constexpr = SHIFTED or N % BLOCK_K > 0
    tile, head, window, sample = _place(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        codes += window * N
    table += head * R
    pad += head * HEAD_DIM
    base = sample * tokens * STRIDE + head * HEAD_DIM
    dout += sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    stat_base = sample * tokens * HEADS + head
    row, code, within = _keys(rows, codes, tile * BLOCK_K, BLOCK_K, N)
    k = _tokens(qkv + base + HEADS * HEAD_DIM, row, dim, pad + HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    v = _tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, pad + 2 * HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    dk, dv = tl.zeros([BLOCK_K, DIM], tl.float32), tl.zeros([BLOCK_K, DIM], tl.float32)
    for start in range(0, N - REST, BLOCK_M):
        dk, dv = _key_gradients(k, v, code, dk, dv, start, rows, codes, qkv + base, pad, dout, lse + stat_base, delta + stat_base,
                                table, dim, scale, N, R, MIDDLE, HEADS, HEAD_DIM, PADDED, CHECKED, BLOCK_M)  # fmt: skip
    if REST > 0:
        dk, dv = _key_gradients(k, v, code, dk, dv, N - REST, rows, codes, qkv + base, pad, dout, lse + stat_base,
                                delta + stat_base, table, dim, scale, N, R, MIDDLE, HEADS, HEAD_DIM, PADDED, CHECKED,
                                TAIL)  # fmt: skip
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
    arguments, constants = _common(qkv, table, pad, geometry)
    windows, places = geometry.rows_nN.shape
    launch(
        _forward_kernel,
        lambda c: (batch * windows * heads * triton.cdiv(places, c["BLOCK_M"]),),
        _configs(FORWARD_TILES, places, qkv.dtype),
        KEY,
        {**arguments, "out": out, "lse": lse},
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
    arguments, constants = _common(qkv, table, pad, geometry)
    arguments |= {"lse": lse, "dout": dout.contiguous(), "dqkv": dqkv, "head_scale": head_dim**-0.5}
    step = _backward_one_tile if places <= ONE_TILE else _backward_tiles
    dbias, query_stride, key_stride, dpad_kv = step(arguments | {"out": out}, constants, len(qkv) * windows)
    dtable = torch.empty(len(table), heads, dtype=torch.float32, device=qkv.device)
    window, used = geometry.window, geometry.used
    launch(
        _table_gradient_kernel,
        lambda c: (triton.cdiv(len(table), c["BLOCK_R"]) * heads,),
        [triton.Config({"BLOCK_R": 32, "BLOCK_K": 64}, num_warps=4)],
        (),
        {"dbias": dbias.sum(0), "dtable": dtable, "query_stride": query_stride, "key_stride": key_stride},
        **{name: constants[name] for name in ("N", "R", "HEADS", "MIDDLE")},
        SPAN_H=2 * window[1] - 1, SPAN_W=2 * window[2] - 1, USED_D=used[0], USED_H=used[1], USED_W=used[2],
    )  # fmt: skip
    dpad = torch.zeros_like(pad)
    if geometry.padded:
        dpad[1:] = dpad_kv.to(pad.dtype).permute(1, 0, 2)
    return dqkv, dtable.to(table.dtype), dpad


def _backward_one_tile(arguments: dict[str, Any], constants: dict[str, Any], batch_windows: int) -> tuple[Tensor, int, int, Tensor]:
    """Every window in one tile; bias gradient of every group (parts, h, N, N), its strides, gradient of the padding (h, 2, d)."""
    heads, head_dim, places = constants["HEADS"], constants["HEAD_DIM"], constants["N"]
    parts, group = _parts(batch_windows, heads)
    dbias, dpad = _partials(arguments, constants, parts, (parts, heads, 2, head_dim))
    launch(
        _backward_one_tile_kernel,
        lambda c: (parts * heads,),
        _one_tile_configs(places, arguments["qkv"].dtype),
        KEY,
        {**arguments, "dbias": dbias, "dpad": dpad, "batch_windows": batch_windows, "group": group},
        size=batch_windows,
        **constants,
    )
    return dbias, 1, places, dpad.sum(0)


def _backward_tiles(arguments: dict[str, Any], constants: dict[str, Any], batch_windows: int) -> tuple[Tensor, int, int, Tensor]:
    """First dQ, then dK and dV, then the bias gradient; returns as :func:`_backward_one_tile`."""
    heads, head_dim, places = constants["HEADS"], constants["HEAD_DIM"], constants["N"]
    dtype = arguments["qkv"].dtype
    parts, group = _parts(batch_windows, heads * triton.cdiv(places, 128) ** 2)
    pad_tiles = triton.cdiv(places, 32)
    dbias, dpad = _partials(arguments, constants, parts, (batch_windows, heads, pad_tiles, 2, head_dim))
    out, dqkv, head_scale = (arguments.pop(name) for name in ("out", "dqkv", "head_scale"))
    arguments["delta"] = torch.empty_like(arguments["lse"])
    launch(
        _backward_queries_kernel,
        lambda c: (batch_windows * heads * triton.cdiv(places, c["BLOCK_M"]),),
        _configs(QUERY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "out": out, "dqkv": dqkv, "head_scale": head_scale},
        size=batch_windows,
        **constants,
    )
    launch(
        _backward_keys_kernel,
        lambda c: (batch_windows * heads * triton.cdiv(places, c["BLOCK_K"]),),
        _configs(KEY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "dqkv": dqkv, "dpad": dpad, "head_scale": head_scale},
        size=batch_windows,
        **constants,
        PAD_TILES=pad_tiles,
    )
    launch(
        _backward_bias_kernel,
        lambda c: (parts * heads * triton.cdiv(places, c["BLOCK_M"]) * triton.cdiv(places, c["BLOCK_K"]),),
        _configs(BIAS_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "dbias": dbias, "batch_windows": batch_windows, "group": group},
        size=batch_windows,
        **constants,
    )
    return dbias, places, 1, dpad.sum((0, 2)) if dpad.numel() else dpad


def _common(qkv: Tensor, table: Tensor, pad: Tensor, geometry: Geometry) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments and constants of every kernel."""
    _, tokens, _, heads, head_dim = qkv.shape
    windows, places = geometry.rows_nN.shape
    long = tokens * 3 * heads * head_dim >= 2**31
    arguments = {
        "qkv": qkv,
        "table": (table.float() * LOG2E).t().contiguous(),
        "pad": pad.to(qkv.dtype).contiguous(),
        "rows": geometry.rows_nN.long() if long else geometry.rows_nN,
        "codes": geometry.codes_nN,
        "tokens": tokens,
        "windows": windows,
        "scale": head_dim**-0.5 * LOG2E,
    }
    constants = {
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "DIM": max(16, triton.next_power_of_2(head_dim)),
        "N": places,
        "R": len(table),
        "MIDDLE": middle_row(geometry.window),
        "PADDED": geometry.padded,
        "SHIFTED": geometry.shifted,
    }
    return arguments, constants


def _parts(batch_windows: int, programs: int) -> tuple[int, int]:
    """Groups of windows and windows of a group: some 1,024 programs, the same on every device so that sums are."""
    parts = min(batch_windows, max(1, 1024 // programs))
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
FORWARD_TILES: Tiles = ((64, 32, 4, 2), (128, 32, 4, 3), (128, 32, 8, 2), (64, 64, 8, 2), (64, 32, 4, 1))
QUERY_BACKWARD_TILES: Tiles = ((64, 64, 4, 1), (64, 64, 4, 2), (64, 32, 4, 2), (128, 64, 8, 2))
KEY_BACKWARD_TILES: Tiles = ((64, 32, 4, 2), (64, 64, 4, 2), (32, 64, 4, 2))
BIAS_BACKWARD_TILES: Tiles = ((64, 64, 4, 1), (64, 64, 4, 2), (128, 64, 8, 1))
FLOAT32_TILES: Tiles = ((32, 32, 8, 1),)
ONE_TILE_WARPS = (4, 8)


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
def _one_tile_configs(places: int, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    """As :func:`_configs` for windows in one tile; the largest, and float32, need eight warps' registers."""
    whole = max(16, triton.next_power_of_2(places))
    warps = ONE_TILE_WARPS if whole <= 64 and dtype != torch.float32 else (8,)
    return tuple(triton.Config({"BLOCK": whole}, num_warps=number, num_stages=1) for number in warps)
