"""Backward pass of routing as a Triton kernel: gradient of the router's logits.

Shape letters: T tokens, H hidden size, E experts, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.moe_routing.triton_forward import expert_scores
from kernels.triton_launch import launch


@triton.jit
def _route_backward_kernel(
    logits,
    experts,
    dweights,
    valid,
    load,
    dbalance,
    dz,
    dlogits,
    tokens,
    EXPERTS: tl.constexpr,
    EXPERTS_PAD: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISED: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Compute the gradient of the logits from those of the weights and of the two losses."""
    token, expert = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, EXPERTS_PAD)
    real_T, known_E = token < tokens, expert < EXPERTS
    place = token[:, None] * EXPERTS + expert[None, :]
    inside = real_T[:, None] & known_E[None, :]
    logits_TE = tl.load(logits + place, mask=inside, other=0.0)
    scores_TE, softmax_TE, lse_T = expert_scores(tl.where(known_E[None, :], logits_TE, float("-inf")), known_E, SIGMOID)
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


def backward(
    logits: Tensor,
    experts: Tensor,
    valid: Tensor,
    load: Tensor,
    dweights: Tensor,
    dbalance: Tensor,
    dz: Tensor,
    *,
    normalised: bool,
    sigmoid: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Return the gradient of the logits, (T, E) of ``dtype``.

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
            "logits": logits,
            "experts": experts,
            "dweights": dweights.contiguous(),
            "valid": valid,
            "load": load,
            "dbalance": dbalance,
            "dz": dz,
            "dlogits": dlogits,
            "tokens": tokens,
        },
        EXPERTS=count,
        EXPERTS_PAD=padded,
        TOP_K=experts.shape[1],
        NORMALISED=normalised,
        SIGMOID=sigmoid,
    )
    return dlogits
