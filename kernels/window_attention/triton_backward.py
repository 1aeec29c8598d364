"""Backward pass of shifted window attention: gradients of qkv, of the bias table and of the padding, as Triton kernels.

Names as in :mod:`kernels.window_attention.triton_tiles`.
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
from kernels.window_attention.triton_tiles import (
    KEY,
    SMALLEST_KEYS,
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

QUERY_BACKWARD_TILES: Tiles = ((64, 32, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 1))
KEY_BACKWARD_TILES: Tiles = ((32, 64, 4, 1), (64, 64, 4, 1), (32, 64, 4, 3), (32, 128, 4, 1))
WIDE_KEY_BACKWARD_TILES: Tiles = ((32, 64, 4, 1), (32, 64, 4, 3))
"""For head sizes above 32, for which the larger tiles spill on sm_80."""
BIAS_BACKWARD_TILES: Tiles = ((64, 64, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (64, 32, 4, 2))
ONE_TILE_BACKWARD = ((4, 1), (4, 2), (4, 3))
"""(warps, stages)."""


@triton.jit
def _queries(
    q_base,
    q_pad,
    out_base,
    dout_base,
    lse_base,
    row,
    within,
    dim,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Load the query data of the backward pass: q, gradient of the output, log-sum-exp and delta = sum(out * gradient).

    A query that is padding, or past the window, has an infinite log-sum-exp: its probabilities are zero.
    """
    q = load_tokens(q_base, row, dim, q_pad, 3 * HEADS * HEAD_DIM, HEAD_DIM, PADDED)
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
    qkv,
    bias,
    pad,
    rows,
    regions,
    lse,
    dout,
    dqkv,
    dbias,
    dpad,
    tokens,
    windows,
    batch_windows,
    group,
    scale,
    head_scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differentiate a group of windows, each in one tile, and sum their bias gradient in registers.

    Scores are computed keys by queries, so that all three products take them as they are. With all keys at hand, delta is
    sum(p * dp) over them: the output is not read.
    """
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    head, part = tl.program_id(0) % HEADS, tl.program_id(0) // HEADS
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    k_pad, v_pad = pad + HEADS * HEAD_DIM, pad + 2 * HEADS * HEAD_DIM
    place = tl.arange(0, BLOCK)
    pairs_KM = load_pairs(bias + head * P * P, 0, 0, P, BLOCK, BLOCK)
    dbias_KM = tl.zeros([BLOCK, BLOCK], tl.float32)
    dk_pad, dv_pad = tl.zeros([DIM], tl.float32), tl.zeros([DIM], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        row, region, within = load_places(rows + window * N, window_regions, 0, BLOCK, N)
        base = sample * tokens * STRIDE + head * HEAD_DIM
        real = within & (row >= 0)
        q = load_tokens(qkv + base, row, dim, pad, STRIDE, HEAD_DIM, PADDED)
        k = load_tokens(qkv + base + HEADS * HEAD_DIM, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
        v = load_tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
        do = tl.load(
            dout + sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM + row[:, None] * (HEADS * HEAD_DIM) + dim[None, :],
            mask=real[:, None] & (dim < HEAD_DIM)[None, :],
            other=0.0,
        )
        lse_M = tl.load(lse + sample * tokens * HEADS + head + row * HEADS, mask=real, other=float("inf"))
        scores_KM = masked_scores(tl.dot(k, tl.trans(q), input_precision="ieee") * scale + pairs_KM, region, region, SHIFTED)
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
    q,
    do,
    lse_M,
    delta_M,
    region_q,
    pairs,
    start,
    rows,
    regions,
    k_base,
    v_base,
    k_pad,
    v_pad,
    dim,
    scale,
    N: tl.constexpr,
    STRIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the gradient of the scores of one key tile, queries by keys, and the keys."""
    row, region, _ = load_places(rows, regions, start, BLOCK_K, N)
    k = load_tokens(k_base, row, dim, k_pad, STRIDE, HEAD_DIM, PADDED)
    v = load_tokens(v_base, row, dim, v_pad, STRIDE, HEAD_DIM, PADDED)
    scores_MK = masked_scores(tl.dot(q, tl.trans(k), input_precision="ieee") * scale + pairs, region_q, region, SHIFTED)
    p_MK = tl.exp2(scores_MK - lse_M[:, None])
    dp_MK = tl.dot(do, tl.trans(v), input_precision="ieee")
    return p_MK * (dp_MK - delta_M[:, None]), k


@triton.jit
def _backward_queries_kernel(
    qkv,
    bias,
    pad,
    rows,
    regions,
    out,
    lse,
    dout,
    dqkv,
    delta,
    tokens,
    windows,
    scale,
    head_scale,
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
    """Compute dQ of one tile of queries of one window and head, and delta for the following kernels."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_M - 1) // BLOCK_M
    tile, head, window, sample = place_of_program(tl.program_id(0), windows, HEADS, TILES)
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
    row, region, within = load_places(rows, regions, tile * BLOCK_M, BLOCK_M, N)
    q, do, lse_M, delta_M = _queries(
        qkv + base, pad, out + out_base, dout + out_base, lse + stat_base, row, within, dim, HEADS, HEAD_DIM, PADDED
    )
    real = within & (row >= 0)
    tl.store(delta + stat_base + row * HEADS, delta_M, mask=real)
    dq = tl.zeros([BLOCK_M, DIM], tl.float32)
    for start in range(0, N, BLOCK_K):
        pairs = load_pairs(bias, tile * BLOCK_M, start, P, BLOCK_M, BLOCK_K)
        ds, k = _score_gradient(
            q,
            do,
            lse_M,
            delta_M,
            region,
            pairs,
            start,
            rows,
            regions,
            k_base,
            v_base,
            k_pad,
            v_pad,
            dim,
            scale,
            N,
            STRIDE,
            HEAD_DIM,
            PADDED,
            SHIFTED,
            BLOCK_K,
        )
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision="ieee")
    _store(dqkv + base, row, real, dim, dq * head_scale, STRIDE, HEAD_DIM)


@triton.jit
def _backward_bias_kernel(
    qkv,
    bias,
    pad,
    rows,
    regions,
    lse,
    delta,
    dout,
    dbias,
    tokens,
    windows,
    batch_windows,
    group,
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
    """Sum the score gradients of one tile of pairs over a group of windows in registers."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES_K: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    TILES: tl.constexpr = TILES_K * ((N + BLOCK_M - 1) // BLOCK_M)
    tile, head = tl.program_id(0) % TILES, tl.program_id(0) // TILES % HEADS
    part = tl.program_id(0) // (TILES * HEADS)
    first_query, first_key = tile // TILES_K * BLOCK_M, tile % TILES_K * BLOCK_K
    dim = tl.arange(0, DIM)
    pad += head * HEAD_DIM
    pairs = load_pairs(bias + head * P * P, first_query, first_key, P, BLOCK_M, BLOCK_K)
    dbias_MK = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for batch_window in range(part * group, tl.minimum((part + 1) * group, batch_windows)):
        window, sample = batch_window % windows, (batch_window // windows).to(tl.int64)
        window_regions = regions
        if SHIFTED:
            window_regions += window * N
        base = sample * tokens * STRIDE + head * HEAD_DIM
        stat_base = sample * tokens * HEADS + head
        row, region, within = load_places(rows + window * N, window_regions, first_query, BLOCK_M, N)
        q, do, lse_M, delta_M = _known_queries(
            qkv + base,
            pad,
            dout + sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM,
            lse + stat_base,
            delta + stat_base,
            row,
            within,
            dim,
            HEADS,
            HEAD_DIM,
            PADDED,
        )
        ds, _ = _score_gradient(
            q,
            do,
            lse_M,
            delta_M,
            region,
            pairs,
            first_key,
            rows + window * N,
            window_regions,
            qkv + base + HEADS * HEAD_DIM,
            qkv + base + 2 * HEADS * HEAD_DIM,
            pad + HEADS * HEAD_DIM,
            pad + 2 * HEADS * HEAD_DIM,
            dim,
            scale,
            N,
            STRIDE,
            HEAD_DIM,
            PADDED,
            SHIFTED,
            BLOCK_K,
        )
        dbias_MK += ds
    query, key = first_query + tl.arange(0, BLOCK_M), first_key + tl.arange(0, BLOCK_K)
    dbias += (part * HEADS + head).to(tl.int64) * N * N
    tl.store(dbias + query[:, None] * N + key[None, :], dbias_MK, mask=(query < N)[:, None] & (key < N)[None, :])


@triton.jit
def _known_queries(
    q_base,
    q_pad,
    dout_base,
    lse_base,
    delta_base,
    row,
    within,
    dim,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Load as :func:`_queries`, with delta already computed."""
    q = load_tokens(q_base, row, dim, q_pad, 3 * HEADS * HEAD_DIM, HEAD_DIM, PADDED)
    real = within & (row >= 0)
    place = row[:, None] * (HEADS * HEAD_DIM) + dim[None, :]
    do = tl.load(dout_base + place, mask=real[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)
    lse_M = tl.load(lse_base + row * HEADS, mask=real, other=float("inf"))
    return q, do, lse_M, tl.load(delta_base + row * HEADS, mask=real, other=0.0)


@triton.jit
def _key_gradients(
    k,
    v,
    region_k,
    dk,
    dv,
    start,
    rows,
    regions,
    q_base,
    q_pad,
    dout_base,
    lse_base,
    delta_base,
    bias,
    first_key,
    dim,
    scale,
    N: tl.constexpr,
    P: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Add one tile of queries to dK and dV; scores are keys by queries, so that nothing is transposed."""
    row, region, within = load_places(rows, regions, start, BLOCK_M, N)
    q, do, lse_M, delta_M = _known_queries(
        q_base, q_pad, dout_base, lse_base, delta_base, row, within, dim, HEADS, HEAD_DIM, PADDED
    )
    scores_KM = tl.dot(k, tl.trans(q), input_precision="ieee") * scale
    scores_KM = masked_scores(scores_KM + load_pairs(bias, first_key, start, P, BLOCK_K, BLOCK_M), region_k, region, SHIFTED)
    p_KM = tl.exp2(scores_KM - lse_M[None, :])
    dv = tl.dot(p_KM.to(do.dtype), do, dv, input_precision="ieee")
    dp_KM = tl.dot(v, tl.trans(do), input_precision="ieee")
    ds_KM = p_KM * (dp_KM - delta_M[None, :])
    return tl.dot(ds_KM.to(q.dtype), q, dk, input_precision="ieee"), dv


@triton.jit
def _backward_keys_kernel(
    qkv,
    bias,
    pad,
    rows,
    regions,
    lse,
    delta,
    dout,
    dqkv,
    dpad,
    tokens,
    windows,
    scale,
    head_scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    N: tl.constexpr,
    P: tl.constexpr,
    PADDED: tl.constexpr,
    SHIFTED: tl.constexpr,
    PAD_TILES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Compute dK and dV of one tile of keys of one window and head."""
    STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
    TILES: tl.constexpr = (N + BLOCK_K - 1) // BLOCK_K
    tile, head, window, sample = place_of_program(tl.program_id(0), windows, HEADS, TILES)
    dim = tl.arange(0, DIM)
    rows += window * N
    if SHIFTED:
        regions += window * N
    bias += head * P * P
    pad += head * HEAD_DIM
    base = sample * tokens * STRIDE + head * HEAD_DIM
    dout += sample * tokens * HEADS * HEAD_DIM + head * HEAD_DIM
    stat_base = sample * tokens * HEADS + head
    row, region, within = load_places(rows, regions, tile * BLOCK_K, BLOCK_K, N)
    k = load_tokens(qkv + base + HEADS * HEAD_DIM, row, dim, pad + HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    v = load_tokens(qkv + base + 2 * HEADS * HEAD_DIM, row, dim, pad + 2 * HEADS * HEAD_DIM, STRIDE, HEAD_DIM, PADDED)
    dk, dv = tl.zeros([BLOCK_K, DIM], tl.float32), tl.zeros([BLOCK_K, DIM], tl.float32)
    for start in range(0, N, BLOCK_M):
        dk, dv = _key_gradients(
            k,
            v,
            region,
            dk,
            dv,
            start,
            rows,
            regions,
            qkv + base,
            pad,
            dout,
            lse + stat_base,
            delta + stat_base,
            bias,
            tile * BLOCK_K,
            dim,
            scale,
            N,
            P,
            HEADS,
            HEAD_DIM,
            PADDED,
            SHIFTED,
            BLOCK_K,
            BLOCK_M,
        )
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
    dbias,
    dtable,
    query_stride,
    key_stride,
    N: tl.constexpr,
    R: tl.constexpr,
    HEADS: tl.constexpr,
    MIDDLE: tl.constexpr,
    SPAN_H: tl.constexpr,
    SPAN_W: tl.constexpr,
    USED_D: tl.constexpr,
    USED_H: tl.constexpr,
    USED_W: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute rows of the table gradient: each sums over the pairs (query, key) of a window with that offset."""
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


def backward(
    dout: Tensor, qkv: Tensor, table: Tensor, pad: Tensor, out: Tensor, lse: Tensor, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``qkv``, ``table`` and ``pad``, in their shapes and dtypes."""
    windows, places = geometry.rows_nN.shape
    heads, head_dim = qkv.shape[-2:]
    dqkv = torch.empty_like(qkv)
    arguments, constants = common(qkv, pad, geometry)
    arguments |= {"lse": lse, "dout": dout.contiguous(), "dqkv": dqkv, "head_scale": head_dim**-0.5}
    bias_by_key = dense_bias(table, qkv.dtype, geometry, transposed=True)
    if in_one_tile(places, qkv.dtype):
        dbias, dpad_kv = _backward_one_tile(arguments | {"bias": bias_by_key}, constants, len(qkv) * windows)
        query_stride, key_stride = 1, places
    else:
        bias = dense_bias(table, qkv.dtype, geometry)
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
        N=places,
        R=len(table),
        HEADS=heads,
        MIDDLE=middle_row(window),
        SPAN_H=2 * window[1] - 1,
        SPAN_W=2 * window[2] - 1,
        USED_D=used[0],
        USED_H=used[1],
        USED_W=used[2],
    )
    dpad = torch.zeros_like(pad)
    if geometry.padded:
        dpad[1:] = dpad_kv.to(pad.dtype).permute(1, 0, 2)
    return dqkv, dtable.to(table.dtype), dpad


def _backward_one_tile(arguments: dict[str, Any], constants: dict[str, Any], batch_windows: int) -> tuple[Tensor, Tensor]:
    """Compute all windows in one tile; return the bias gradient per group, keys by queries (parts, h, N, N), and of the padding."""
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
    """Compute dQ, then dK and dV, then the bias gradient; results as :func:`_backward_one_tile`, queries by keys."""
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
        configs(QUERY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias, "out": out, "dqkv": dqkv, "head_scale": head_scale},
        size=batch_windows,
        **constants,
    )
    launch(
        _backward_keys_kernel,
        lambda c: (batch_windows * heads * triton.cdiv(places, c["BLOCK_K"]),),
        configs(KEY_BACKWARD_TILES if head_dim <= 32 else WIDE_KEY_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias_by_key, "dqkv": dqkv, "dpad": dpad, "head_scale": head_scale},
        size=batch_windows,
        **constants,
        PAD_TILES=pad_tiles,
    )
    launch(
        _backward_bias_kernel,
        lambda c: (parts * heads * triton.cdiv(places, c["BLOCK_M"]) * triton.cdiv(places, c["BLOCK_K"]),),
        configs(BIAS_BACKWARD_TILES, places, dtype),
        KEY,
        {**arguments, "bias": bias, "dbias": dbias, "batch_windows": batch_windows, "group": group},
        size=batch_windows,
        **constants,
    )
    return dbias, dpad.sum((0, 2)) if dpad.numel() else dpad


def _parts(batch_windows: int, programs: int, wanted: int) -> tuple[int, int]:
    """Return number and size of groups of windows for about ``wanted`` programs; equal on every device, so that sums are, too."""
    parts = min(batch_windows, max(1, wanted // programs))
    group = triton.cdiv(batch_windows, parts)
    return triton.cdiv(batch_windows, group), group


def _partials(arguments: dict[str, Any], constants: dict[str, Any], parts: int, padding: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Allocate the bias gradients of the groups and, with padding, the gradients of the padding."""
    shape = (parts, constants["HEADS"], constants["N"], constants["N"])
    device = arguments["qkv"].device
    dbias = torch.empty(shape, dtype=torch.float32, device=device)
    return dbias, torch.empty(padding if constants["PADDED"] else 0, dtype=torch.float32, device=device)


@cache
def _one_tile_configs(places: int) -> tuple[triton.Config, ...]:
    """Return the configurations for windows in one tile."""
    whole = max(16, triton.next_power_of_2(places))
    return tuple(triton.Config({"BLOCK": whole}, num_warps=warps, num_stages=stages) for warps, stages in ONE_TILE_BACKWARD)
