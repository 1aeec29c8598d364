"""Mixture of experts as Triton kernels: router with its losses, stable sort, SwiGLU experts, combination; forward and backward.

Nothing waits for the device: the sort is a counting sort whose tiles find their expert by themselves, and grids are sized at the
most tiles that there can be. Of the forward pass only the experts' pre-activations are kept. There are no atomics: what is summed
across programs is summed from their partial results, in a fixed order.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
In the kernels M are rows, N the columns of a product, C what it sums over.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.launch import launch


@dataclass(frozen=True)
class Routed:
    """What the router found.

    Attributes:
        weights_TK: float32; experts_TK: int32, best first.
        order_S: int32, the (token, choice) pair ``token * K + choice`` of each sorted row.
        place_TK: int32, the row of each pair.
        ends_E: int32, where the rows of each expert end.
        counts_E: int64, pairs of valid tokens; probabilities_E: float32, sum of the scores of valid tokens.
        z: float32 scalar, sum of the squared logsumexp of valid tokens.
        logits_TE: float32.
    """

    weights_TK: Tensor
    experts_TK: Tensor
    order_S: Tensor
    place_TK: Tensor
    ends_E: Tensor
    counts_E: Tensor
    probabilities_E: Tensor
    z: Tensor
    logits_TE: Tensor


@triton.jit
def _scores(logits_TE, known_E, SIGMOID: tl.constexpr):
    """Scores, softmax and logsumexp of masked logits."""
    peak_T = tl.max(logits_TE, 1)
    raised_TE = tl.exp(logits_TE - peak_T[:, None])
    total_T = tl.sum(raised_TE, 1)
    softmax_TE = raised_TE / total_T[:, None]
    if SIGMOID:
        scores_TE = tl.where(known_E[None, :], 1.0 / (1.0 + tl.exp(-logits_TE)), 0.0)
    else:
        scores_TE = softmax_TE
    return scores_TE, softmax_TE, peak_T + tl.log(total_T)


@triton.jit
def _route_kernel(
    hidden, router, expert_bias, valid, logits, weights, experts, ranks, members, counts, sums, z, tokens,
    HIDDEN: tl.constexpr, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, TOP_K: tl.constexpr, NORMALISED: tl.constexpr,
    SIGMOID: tl.constexpr, BIASED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One tile of tokens: logits, choice, weights, rank of each choice within the tile and expert, and sums for the losses."""
    tile = tl.program_id(0)
    token, expert = tile * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, EXPERTS_PAD)
    real_T, known_E = token < tokens, expert < EXPERTS
    row = token.to(tl.int64) * HIDDEN
    logits_TE = tl.zeros([BLOCK_T, EXPERTS_PAD], tl.float32)
    for start in range(0, HIDDEN, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        x = tl.load(hidden + row[:, None] + column[None, :], mask=real_T[:, None] & (column < HIDDEN)[None, :], other=0.0)
        w = tl.load(
            router + expert[None, :] * HIDDEN + column[:, None], mask=known_E[None, :] & (column < HIDDEN)[:, None], other=0.0
        )
        if x.dtype != w.dtype:
            x, w = x.to(tl.float32), w.to(tl.float32)
        logits_TE = tl.dot(x, w, logits_TE, input_precision="ieee")
    place = token[:, None] * EXPERTS + expert[None, :]
    tl.store(logits + place, logits_TE, mask=real_T[:, None] & known_E[None, :])
    scores_TE, _, lse_T = _scores(tl.where(known_E[None, :], logits_TE, float("-inf")), known_E, SIGMOID)

    preference_TE = scores_TE
    if BIASED:
        preference_TE += tl.load(expert_bias + expert, mask=known_E, other=0.0)[None, :]
    # Above -inf, which marks what is chosen: a bias of -inf or NaN would be chosen twice.
    preference_TE = tl.where(preference_TE > -1e38, preference_TE, -1e38)
    preference_TE = tl.where(known_E[None, :], preference_TE, float("-inf"))
    member_TE = tl.zeros([BLOCK_T, EXPERTS_PAD], tl.int32)
    chosen, weight = (), ()
    total_T = tl.zeros([BLOCK_T], tl.float32)
    for _ in tl.static_range(TOP_K):
        best_T = tl.max(preference_TE, 1)
        choice_T = tl.min(tl.where(preference_TE == best_T[:, None], expert[None, :], EXPERTS_PAD), 1)
        is_choice_TE = expert[None, :] == choice_T[:, None]
        weight_T = tl.sum(tl.where(is_choice_TE, scores_TE, 0.0), 1)
        total_T += weight_T
        member_TE += (is_choice_TE & real_T[:, None]).to(tl.int32)
        preference_TE = tl.where(is_choice_TE, float("-inf"), preference_TE)
        chosen, weight = chosen + (choice_T,), weight + (weight_T,)
    # A token chooses an expert once: within the tile, a choice comes after those of the tokens before it.
    before_TE = tl.cumsum(member_TE, 0) - member_TE
    for k in tl.static_range(TOP_K):
        weight_T = weight[k] / total_T if NORMALISED else weight[k]
        rank_T = tl.sum(tl.where(expert[None, :] == chosen[k][:, None], before_TE, 0), 1)
        tl.store(weights + token * TOP_K + k, weight_T, mask=real_T)
        tl.store(experts + token * TOP_K + k, chosen[k], mask=real_T)
        tl.store(ranks + token * TOP_K + k, rank_T, mask=real_T)
    counted_T = tl.load(valid + token, mask=real_T, other=0)
    partial = tile * EXPERTS + expert
    tl.store(members + expert * tl.num_programs(0) + tile, tl.sum(member_TE, 0), mask=known_E)
    tl.store(counts + partial, tl.sum(member_TE * counted_T.to(tl.int32)[:, None], 0), mask=known_E)
    tl.store(sums + partial, tl.sum(scores_TE * counted_T.to(tl.float32)[:, None], 0), mask=known_E)
    tl.store(z + tile, tl.sum(tl.where(counted_T != 0, lse_T * lse_T, 0.0), 0))


@triton.jit
def _place_kernel(experts, ranks, bases, order, place, pairs, tiles, TOP_K: tl.constexpr, BLOCK_T: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """Row of each (token, choice) pair, and pair of each row, from where a tile's rows of an expert begin."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = pair < pairs
    expert = tl.load(experts + pair, mask=real, other=0)
    begin = tl.load(bases + expert * tiles + pair // (TOP_K * BLOCK_T), mask=real, other=0)
    row = begin + tl.load(ranks + pair, mask=real, other=0)
    tl.store(place + pair, row, mask=real)
    tl.store(order + row, pair, mask=real)


@triton.jit
def _route_backward_kernel(
    logits, experts, dweights, valid, load, dbalance, dz, dlogits, tokens,
    EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr, TOP_K: tl.constexpr, NORMALISED: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits from those of the weights and of the two losses."""
    token, expert = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, EXPERTS_PAD)
    real_T, known_E = token < tokens, expert < EXPERTS
    place = token[:, None] * EXPERTS + expert[None, :]
    inside = real_T[:, None] & known_E[None, :]
    logits_TE = tl.load(logits + place, mask=inside, other=0.0)
    scores_TE, softmax_TE, lse_T = _scores(tl.where(known_E[None, :], logits_TE, float("-inf")), known_E, SIGMOID)
    total_T, mean_T = tl.zeros([BLOCK_T], tl.float32), tl.zeros([BLOCK_T], tl.float32)
    dscores_TE, member_TE = tl.zeros([BLOCK_T, EXPERTS_PAD], tl.float32), tl.zeros([BLOCK_T, EXPERTS_PAD], tl.int32)
    for k in tl.static_range(TOP_K):
        is_choice_TE = expert[None, :] == tl.load(experts + token * TOP_K + k, mask=real_T, other=0)[:, None]
        dweight_T = tl.load(dweights + token * TOP_K + k, mask=real_T, other=0.0)
        score_T = tl.sum(tl.where(is_choice_TE, scores_TE, 0.0), 1)
        total_T += score_T
        mean_T += dweight_T * score_T
        dscores_TE += tl.where(is_choice_TE, dweight_T[:, None], 0.0)
        member_TE += is_choice_TE.to(tl.int32)
    if NORMALISED:
        shifted_TE = (dscores_TE - (mean_T / total_T)[:, None]) / total_T[:, None]
        dscores_TE = tl.where(member_TE > 0, shifted_TE, 0.0)
    counted_T = tl.load(valid + token, mask=real_T, other=0).to(tl.float32)
    load_E = tl.load(load + expert, mask=known_E, other=0.0) * tl.load(dbalance)
    dscores_TE += load_E[None, :] * counted_T[:, None]
    if SIGMOID:
        dlogits_TE = dscores_TE * scores_TE * (1.0 - scores_TE)
    else:
        dlogits_TE = scores_TE * (dscores_TE - tl.sum(scores_TE * dscores_TE, 1)[:, None])
    dlogits_TE += (2.0 * tl.load(dz) * lse_T * counted_T)[:, None] * softmax_TE
    tl.store(dlogits + place, dlogits_TE.to(dlogits.dtype.element_ty), mask=inside)


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
def _up_kernel(
    hidden, gate_up, order, ends, pre, activation, rows,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Rows of tokens times gate and up weights of their expert; keeps both and writes silu(gate) * up."""
    TILES_N: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    tile_m, tile_n = _swizzled(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = _tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < WIDTH
    token = tl.load(order + row, mask=real_M, other=0) // TOP_K
    x_M = hidden + token.to(tl.int64) * HIDDEN
    gate_up += expert.to(tl.int64) * (2 * WIDTH * HIDDEN)
    gate, up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32), tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = tl.load(x_M[:, None] + c[None, :], mask=real_M[:, None] & (c < HIDDEN)[None, :], other=0.0)
        mask = real_N[None, :] & (c < HIDDEN)[:, None]
        w = column[None, :] * HIDDEN + c[:, None]
        gate = tl.dot(x, tl.load(gate_up + w, mask=mask, other=0.0), gate, input_precision="ieee")
        up = tl.dot(x, tl.load(gate_up + WIDTH * HIDDEN + w, mask=mask, other=0.0), up, input_precision="ieee")
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
    left, right, ends, out, rows,
    COLUMNS: tl.constexpr, CONTRACTED: tl.constexpr, STRIDE_C: tl.constexpr, STRIDE_N: tl.constexpr, EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sorted rows (S, C) times the matrix of their expert, (S, N)."""
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    tile_m, tile_n = _swizzled(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = _tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < COLUMNS
    local = tl.arange(0, BLOCK_M)[:, None]
    left += first.to(tl.int64) * CONTRACTED
    right += expert.to(tl.int64) * (COLUMNS * CONTRACTED)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, CONTRACTED, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        a = tl.load(left + local * CONTRACTED + c[None, :], mask=real_M[:, None] & (c < CONTRACTED)[None, :], other=0.0)
        b = tl.load(right + column[None, :] * STRIDE_N + c[:, None] * STRIDE_C, mask=real_N[None, :] & (c < CONTRACTED)[:, None],
                    other=0.0)  # fmt: skip
        acc = tl.dot(a, b, acc, input_precision="ieee")
    out += first.to(tl.int64) * COLUMNS
    tl.store(out + local * COLUMNS + column[None, :], acc.to(out.dtype.element_ty), mask=real_M[:, None] & real_N[None, :])


@triton.jit
def _combine_kernel(
    rows, place, weights, out, tokens,
    HIDDEN: tl.constexpr, TOP_K: tl.constexpr, WEIGHTED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
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
    dout, down, order, ends, weights, pre, dpre, weighted, dweights, rows,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, TOP_K: tl.constexpr, EXPERTS: tl.constexpr, EXPERTS_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of the pre-activations; on the way the weighted activations again, and this tile's share of the weights' gradient.

    A weight's gradient is dout . (down act) = (downT dout) . act: the experts' outputs need not be kept.
    """
    TILES_N: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    tile_m, tile_n = _swizzled(tl.cdiv(rows, BLOCK_M) + EXPERTS, TILES_N, 8)
    expert, first, end = _tile_of_expert(ends, tile_m, EXPERTS, EXPERTS_PAD, BLOCK_M)
    if first >= end:
        return
    row, column = first + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    real_M, real_N = row < end, column < WIDTH
    pair = tl.load(order + row, mask=real_M, other=0)
    dout_M = dout + (pair // TOP_K).to(tl.int64) * HIDDEN
    down += expert.to(tl.int64) * (HIDDEN * WIDTH)
    dact = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, HIDDEN, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        d = tl.load(dout_M[:, None] + c[None, :], mask=real_M[:, None] & (c < HIDDEN)[None, :], other=0.0)
        w = tl.load(down + column[None, :] + c[:, None] * WIDTH, mask=real_N[None, :] & (c < HIDDEN)[:, None], other=0.0)
        dact = tl.dot(d, w, dact, input_precision="ieee")
    mask = real_M[:, None] & real_N[None, :]
    begin = first.to(tl.int64) * (2 * WIDTH)
    place = tl.arange(0, BLOCK_M)[:, None] * (2 * WIDTH) + column[None, :]
    gate = tl.load(pre + begin + place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(pre + begin + WIDTH + place, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(dweights + row.to(tl.int64) * TILES_N + tile_n, tl.sum(dact * silu * up, 1), mask=real_M)
    weight = tl.load(weights + pair, mask=real_M, other=0.0)[:, None]
    dtype = dpre.dtype.element_ty
    weighted += first.to(tl.int64) * WIDTH
    local = tl.arange(0, BLOCK_M)[:, None] * WIDTH + column[None, :]
    tl.store(weighted + local, (weight * silu * up).to(dtype), mask=mask)
    dact *= weight
    tl.store(dpre + begin + place, (dact * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))).to(dtype), mask=mask)
    tl.store(dpre + begin + WIDTH + place, (dact * silu).to(dtype), mask=mask)


@triton.jit
def _weight_gradient_kernel(
    left, right, order, ends, out,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TOP_K: tl.constexpr, GATHER_LEFT: tl.constexpr, EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum over an expert's rows of left (rows, M) transposed times right (rows, N); one side is read through the sort."""
    TILES_N: tl.constexpr = (COLUMNS + BLOCK_N - 1) // BLOCK_N
    TILES: tl.constexpr = TILES_N * ((ROWS + BLOCK_M - 1) // BLOCK_M)
    expert, tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    m = tile // TILES_N * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile % TILES_N * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(ends + expert)
    begin = tl.load(ends + expert - 1, mask=expert > 0, other=0)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(begin, end, BLOCK_C):
        row = start + tl.arange(0, BLOCK_C)
        real = row < end
        token = (tl.load(order + row, mask=real, other=0) // TOP_K).to(tl.int64)
        row = row.to(tl.int64)
        a_row = token if GATHER_LEFT else row
        b_row = row if GATHER_LEFT else token
        a = tl.load(left + a_row[None, :] * ROWS + m[:, None], mask=real[None, :] & (m < ROWS)[:, None], other=0.0)
        b = tl.load(right + b_row[:, None] * COLUMNS + n[None, :], mask=real[:, None] & (n < COLUMNS)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    place = expert.to(tl.int64) * (ROWS * COLUMNS) + m[:, None] * COLUMNS + n[None, :]
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=(m < ROWS)[:, None] & (n < COLUMNS)[None, :])


def route(
    hidden: Tensor,
    router: Tensor,
    expert_bias: Tensor | None,
    valid: Tensor,
    top_k: int,
    normalised: bool,
    sigmoid: bool,
) -> Routed:
    """Choose K experts for each token and sort the choices by expert.

    Args:
        hidden: (T, H); router: (E, H); expert_bias: (E,) or none, added to the scores for the choice alone.
        valid: (T,) bool, tokens that count in the sums.
    """
    tokens, hidden_size = hidden.shape
    experts, device = len(router), hidden.device
    padded = max(16, triton.next_power_of_2(experts))
    tile = 16 if padded > 64 else 32
    tiles = max(1, triton.cdiv(tokens, tile))
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=device)
    chosen, ranks, place = (torch.empty(tokens, top_k, dtype=torch.int32, device=device) for _ in range(3))
    members = torch.empty(experts * tiles, dtype=torch.int32, device=device)
    counts = torch.empty(tiles, experts, dtype=torch.int32, device=device)
    sums = torch.empty(tiles, experts, dtype=torch.float32, device=device)
    z = torch.empty(tiles, dtype=torch.float32, device=device)
    logits = torch.empty(tokens, experts, dtype=torch.float32, device=device)
    launch(
        _route_kernel,
        lambda c: (tiles,),
        [triton.Config({"BLOCK_C": 32 if hidden.dtype == torch.float32 else 64}, num_warps=8 if padded > 128 else 4, num_stages=4)],
        (),
        {
            "hidden": hidden, "router": router, "valid": valid,
            "expert_bias": router if expert_bias is None else expert_bias.float(),
            "logits": logits, "weights": weights, "experts": chosen, "ranks": ranks, "members": members, "counts": counts,
            "sums": sums, "z": z, "tokens": tokens,
        },
        HIDDEN=hidden_size, EXPERTS=experts, EXPERTS_PAD=padded, TOP_K=top_k, NORMALISED=normalised, SIGMOID=sigmoid,
        BIASED=expert_bias is not None, BLOCK_T=tile,
    )  # fmt: skip
    through = members.cumsum(0, dtype=torch.int32)  # by expert, then by tile: one scan gives both levels
    ends = through.view(experts, tiles)[:, -1].contiguous()
    order = torch.empty(tokens * top_k, dtype=torch.int32, device=device)
    launch(
        _place_kernel,
        lambda c: (triton.cdiv(tokens * top_k, c["BLOCK"]),),
        [triton.Config({"BLOCK": 512}, num_warps=4)],
        (),
        {"experts": chosen, "ranks": ranks, "bases": through - members, "order": order, "place": place,
         "pairs": tokens * top_k, "tiles": tiles},
        TOP_K=top_k, BLOCK_T=tile,
    )  # fmt: skip
    return Routed(weights, chosen, order, place, ends, counts.sum(0), sums.sum(0), z.sum(), logits)


def route_backward(
    logits: Tensor, experts: Tensor, valid: Tensor, load: Tensor, dweights: Tensor, dbalance: Tensor, dz: Tensor, *,
    normalised: bool, sigmoid: bool, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Gradient of the logits, (T, E) of ``dtype``.

    Args:
        load: (E,) float32, derivative of the load-balance loss by the score of a valid token.
        dweights: (T, K); dbalance, dz: gradients of the load-balance loss and of the sum of squared logsumexp, scalars.
    """
    tokens, count = logits.shape
    padded = max(16, triton.next_power_of_2(count))
    dlogits = torch.empty(tokens, count, dtype=dtype, device=logits.device)
    launch(
        _route_backward_kernel,
        lambda c: (triton.cdiv(tokens, c["BLOCK_T"]),),
        [triton.Config({"BLOCK_T": 16 if padded > 64 else 32}, num_warps=4)],
        (),
        {
            "logits": logits, "experts": experts, "dweights": dweights.contiguous(), "valid": valid, "load": load,
            "dbalance": dbalance, "dz": dz, "dlogits": dlogits, "tokens": tokens,
        },
        EXPERTS=count, EXPERTS_PAD=padded, TOP_K=experts.shape[1], NORMALISED=normalised, SIGMOID=sigmoid,
    )  # fmt: skip
    return dlogits


def experts_forward(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Combined output (T, H) and the pre-activations (S, 2 I) of the sorted rows."""
    (experts, hidden_size, width), top_k, rows = down.shape, place.shape[1], len(order)
    pre = hidden.new_empty(rows, 2 * width)
    activation = hidden.new_empty(rows, width)
    sizes = _expert_sizes(experts)
    _launch_rows(
        _up_kernel, rows, experts, width, UP_TILES, hidden.dtype,
        {"hidden": hidden, "gate_up": gate_up, "order": order, "ends": ends, "pre": pre, "activation": activation},
        HIDDEN=hidden_size, WIDTH=width, TOP_K=top_k, **sizes,
    )  # fmt: skip
    out = _grouped(activation, down, ends, hidden_size, stride_c=1, stride_n=width)
    return _combine(out, place, weights), pre


def experts_backward(
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
    (experts, hidden_size, width), top_k, rows = down.shape, place.shape[1], len(order)
    sizes = _expert_sizes(experts)
    dpre, weighted = torch.empty_like(pre), pre.new_empty(rows, width)
    column_tile = 64 if hidden.dtype != torch.float32 else 32
    shares = torch.empty(rows, triton.cdiv(width, column_tile), dtype=torch.float32, device=hidden.device)
    _launch_rows(
        _activation_backward_kernel, rows, experts, width, ACTIVATION_BACKWARD_TILES, hidden.dtype,
        {"dout": dout, "down": down, "order": order, "ends": ends, "weights": weights, "pre": pre, "dpre": dpre,
         "weighted": weighted, "dweights": shares},
        HIDDEN=hidden_size, WIDTH=width, TOP_K=top_k, **sizes,
    )  # fmt: skip
    dweights = shares.sum(1)[place.flatten().long()].view(weights.shape)
    drows = _grouped(dpre, gate_up, ends, hidden_size, stride_c=hidden_size, stride_n=1)
    dhidden = _combine(drows, place, None)
    dgate_up = _weight_gradient(dpre, hidden, order, ends, gate_up, top_k, gather_left=False)
    ddown = _weight_gradient(dout, weighted, order, ends, down, top_k, gather_left=True)
    return dhidden, dweights, dgate_up, ddown


def _grouped(left: Tensor, right: Tensor, ends: Tensor, columns: int, stride_c: int, stride_n: int) -> Tensor:
    experts = len(right)
    out = left.new_empty(len(left), columns)
    _launch_rows(
        _grouped_kernel, len(left), experts, columns, GROUPED_TILES, left.dtype,
        {"left": left, "right": right, "ends": ends, "out": out},
        COLUMNS=columns, CONTRACTED=left.shape[1], STRIDE_C=stride_c, STRIDE_N=stride_n, **_expert_sizes(experts),
    )  # fmt: skip
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
        HIDDEN=hidden_size, TOP_K=top_k, WEIGHTED=weights is not None,
    )  # fmt: skip
    return out


def _weight_gradient(
    left: Tensor, right: Tensor, order: Tensor, ends: Tensor, weight: Tensor, top_k: int, gather_left: bool
) -> Tensor:
    experts, rows, columns = weight.shape
    out = torch.empty_like(weight)
    launch(
        _weight_gradient_kernel,
        lambda c: (experts * triton.cdiv(rows, c["BLOCK_M"]) * triton.cdiv(columns, c["BLOCK_N"]),),
        _configs(WEIGHT_GRADIENT_TILES, left.dtype),
        ("ROWS", "COLUMNS", "EXPERTS"),
        {"left": left, "right": right, "order": order, "ends": ends, "out": out},
        size=len(order),
        ROWS=rows, COLUMNS=columns, TOP_K=top_k, GATHER_LEFT=gather_left, EXPERTS=experts,
    )  # fmt: skip
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


# Tiles as (rows, columns, contracted, warps, stages), the first being the safe choice; float32 products run on the scalar units.
Tiles = tuple[tuple[int, int, int, int, int], ...]
UP_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 64, 64, 8, 3), (128, 64, 32, 8, 4), (64, 128, 64, 8, 3))
GROUPED_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 256, 64, 8, 3), (64, 128, 64, 4, 3))
ACTIVATION_BACKWARD_TILES: Tiles = ((64, 64, 32, 8, 3), (64, 64, 64, 8, 3), (64, 64, 64, 8, 4))
WEIGHT_GRADIENT_TILES: Tiles = ((64, 64, 32, 4, 3), (128, 128, 64, 8, 3), (128, 128, 64, 8, 5))
FLOAT32_TILES: Tiles = ((32, 32, 32, 4, 2),)


@cache
def _configs(tiles: Tiles, dtype: torch.dtype) -> tuple[triton.Config, ...]:
    return tuple(
        triton.Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_C": c}, num_warps=warps, num_stages=stages)
        for m, n, c, warps, stages in (FLOAT32_TILES if dtype == torch.float32 else tiles)
    )
