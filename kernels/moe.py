"""Mixture-of-experts layer: router and SwiGLU experts, dropless (Qwen2-MoE's form; Fedus et al., arXiv:2101.03961, for the losses).

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token.

This is the plain PyTorch form, the specification of the operation: tokens are sorted by expert (stable), each expert computes its
own contiguous rows, and the results are combined by a gather and a sum over K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class MoEOutput:
    """What one layer computes.

    Attributes:
        hidden_TH: combined output of the experts, dtype of the input.
        load_balance_loss: scalar float32, Switch's loss in transformers' scale: K where the load is even.
        z_loss: scalar float32, mean squared logsumexp of the router's logits (ST-MoE).
        counts_E: int64, (token, choice) pairs that went to each expert; masked tokens are not counted.
    """

    hidden_TH: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    counts_E: Tensor


@dataclass(frozen=True)
class Routing:
    """Where the tokens go.

    Attributes:
        weights_TK: float32, how much each chosen expert counts.
        experts_TK: int64, the chosen experts, best first.
        probabilities_TE: float32 scores before the choice.
        logits_TE: float32.
    """

    weights_TK: Tensor
    experts_TK: Tensor
    probabilities_TE: Tensor
    logits_TE: Tensor


def route(
    hidden_TH: Tensor,
    router_weight_EH: Tensor,
    top_k: int,
    norm_topk_prob: bool = True,
    scoring: Scoring = "softmax",
    expert_bias: Tensor | None = None,
) -> Routing:
    """Choose K experts per token, in float32.

    ``expert_bias`` (E,) changes who is chosen and never how much a choice counts (aux-loss-free balancing, arXiv:2408.15664).
    """
    logits = F.linear(hidden_TH.float(), router_weight_EH.float())
    probabilities = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    preference = probabilities if expert_bias is None else probabilities + expert_bias.float()
    experts = preference.topk(top_k, dim=-1).indices
    weights = probabilities.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(weights, experts, probabilities, logits)


def experts_forward(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Weighted sum over its K experts of ``down(silu(gate(x)) * up(x))`` for every token, (T, H)."""
    tokens, top_k = experts_TK.shape
    order = experts_TK.flatten().argsort(stable=True)
    counts = experts_TK.flatten().bincount(minlength=len(down_EHI)).tolist()
    rows = hidden_TH[order // top_k].split(counts)
    # Unbinding keeps a single gradient tensor for all experts, so that one without tokens still gets its (zero) gradient.
    results = [
        F.linear(_swiglu(F.linear(rows_e, gate_up)), down)
        for rows_e, gate_up, down in zip(rows, gate_up_E2IH.unbind(), down_EHI.unbind(), strict=True)
    ]
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return (torch.cat(results)[place].view(tokens, top_k, -1) * weights_TK.unsqueeze(-1).to(hidden_TH.dtype)).sum(1)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def moe(
    hidden_TH: Tensor,
    router_weight_EH: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    top_k: int,
    norm_topk_prob: bool = True,
    scoring: Scoring = "softmax",
    expert_bias: Tensor | None = None,
    valid_T: Tensor | None = None,
) -> MoEOutput:
    """Route every token to ``top_k`` of the experts and combine their results.

    Args:
        valid_T: bool, tokens that count in losses and load (padding is computed, and not counted); None = all.

    Raises:
        ValueError: more experts per token than there are experts.
    """
    experts = router_weight_EH.shape[0]
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k {top_k} must be between 1 and the number of experts, {experts}")
    routing = route(hidden_TH, router_weight_EH, top_k, norm_topk_prob, scoring, expert_bias)
    valid = torch.ones(len(hidden_TH), device=hidden_TH.device) if valid_T is None else valid_T.float()
    total = valid.sum().clamp(min=1)
    chosen_TE = F.one_hot(routing.experts_TK, experts).sum(1) * valid[:, None]
    mean_probability_E = (routing.probabilities_TE * valid[:, None]).sum(0) / total
    load_balance = experts * (chosen_TE.sum(0) / total * mean_probability_E).sum()
    z_loss = (routing.logits_TE.logsumexp(-1).square() * valid).sum() / total
    hidden = experts_forward(hidden_TH, routing.weights_TK, routing.experts_TK, gate_up_E2IH, down_EHI)
    return MoEOutput(hidden, load_balance, z_loss, chosen_TE.sum(0).long())
