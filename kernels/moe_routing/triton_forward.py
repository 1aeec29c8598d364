"""Routing of a mixture of experts as Triton kernels: scores, choice, losses and stable sort.

Nothing waits for the device. The sort is a counting sort. There are no atomics: sums over programs add their partial results in a
fixed order.

Shape letters: T tokens, H hidden size, E experts, K experts of a token, S = T * K rows sorted by expert.
In the kernels C is the contracted axis of a product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton_launch import launch


@dataclass(frozen=True)
class Routed:
    """Result of routing.

    Attributes:
        weights_TK: float32; experts_TK: int32, best first.
        order_S: int32, the (token, choice) pair ``token * K + choice`` of each sorted row.
        place_TK: int32, the row of each pair.
        ends_E: int32, end of the rows of each expert.
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
def expert_scores(logits_TE, known_E, SIGMOID: tl.constexpr):
    """Return scores, softmax and logsumexp of masked logits."""
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
    hidden,
    router,
    expert_bias,
    valid,
    logits,
    weights,
    experts,
    ranks,
    members,
    counts,
    sums,
    z,
    tokens,
    HIDDEN: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISED: tl.constexpr,
    SIGMOID: tl.constexpr,
    BIASED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Route one tile of tokens: logits, choice, weights, rank of each choice within tile and expert, and sums for the losses."""
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
    scores_TE, _, lse_T = expert_scores(tl.where(known_E[None, :], logits_TE, float("-inf")), known_E, SIGMOID)

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
def _place_kernel(
    experts, ranks, bases, order, place, pairs, tiles, TOP_K: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr
):
    """Store the row of each (token, choice) pair and the pair of each row, given the first row of each tile and expert."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = pair < pairs
    expert = tl.load(experts + pair, mask=real, other=0)
    begin = tl.load(bases + expert * tiles + pair // (TOP_K * BLOCK_T), mask=real, other=0)
    row = begin + tl.load(ranks + pair, mask=real, other=0)
    tl.store(place + pair, row, mask=real)
    tl.store(order + row, pair, mask=real)


def forward(
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
            "hidden": hidden,
            "router": router,
            "valid": valid,
            "expert_bias": router if expert_bias is None else expert_bias.float(),
            "logits": logits,
            "weights": weights,
            "experts": chosen,
            "ranks": ranks,
            "members": members,
            "counts": counts,
            "sums": sums,
            "z": z,
            "tokens": tokens,
        },
        HIDDEN=hidden_size,
        EXPERTS=experts,
        EXPERTS_PAD=padded,
        TOP_K=top_k,
        NORMALISED=normalised,
        SIGMOID=sigmoid,
        BIASED=expert_bias is not None,
        BLOCK_T=tile,
    )
    through = members.cumsum(0, dtype=torch.int32)  # by expert, then by tile: one scan gives both levels
    ends = through.view(experts, tiles)[:, -1].contiguous()
    order = torch.empty(tokens * top_k, dtype=torch.int32, device=device)
    launch(
        _place_kernel,
        lambda c: (triton.cdiv(tokens * top_k, c["BLOCK"]),),
        [triton.Config({"BLOCK": 512}, num_warps=4)],
        (),
        {
            "experts": chosen,
            "ranks": ranks,
            "bases": through - members,
            "order": order,
            "place": place,
            "pairs": tokens * top_k,
            "tiles": tiles,
        },
        TOP_K=top_k,
        BLOCK_T=tile,
    )
    return Routed(weights, chosen, order, place, ends, counts.sum(0), sums.sum(0), z.sum(), logits)
