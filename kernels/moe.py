"""Mixture-of-experts layer: router and SwiGLU experts, dropless (Qwen2-MoE's form; Fedus et al., arXiv:2101.03961, for the losses).

:func:`moe` is the operation, :func:`moe_reference` its specification in plain PyTorch: tokens are sorted by expert (stable), each
expert computes its own contiguous rows, and the results are combined by a gather and a sum over K. On a GPU the operation is the
Triton kernels of ``kernels/gpu``; on a CPU it is the reference, or PyTorch's grouped products where these are faster or traceable.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import uses_triton
from kernels.experts import Experts, experts_reference, generation_form, training_form
from kernels.moe_ops import experts_op, route_op

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
    """Choose K experts per token, in float32 (float64 where the input is).

    ``expert_bias`` (E,) changes who is chosen and never how much a choice counts (aux-loss-free balancing, arXiv:2408.15664).
    """
    with torch.autocast(hidden_TH.device.type, enabled=False):
        exact = torch.promote_types(hidden_TH.dtype, torch.float32)
        logits = F.linear(hidden_TH.to(exact), router_weight_EH.to(exact))
    probabilities = logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()
    preference = probabilities if expert_bias is None else probabilities + expert_bias.to(exact)
    experts = preference.topk(top_k, dim=-1).indices
    weights = probabilities.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    return Routing(weights, experts, probabilities, logits)


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
        hidden_TH: float32, float16 or bfloat16, as the experts' weights; the router computes in float32.
        expert_bias: (E,), see :func:`balanced_bias`; receives no gradient.
        valid_T: bool, tokens that count in losses and load (padding is computed, and not counted); None = all.

    Raises:
        ValueError: more experts per token than there are experts, or sizes that do not fit each other.
    """
    _check(hidden_TH, router_weight_EH, gate_up_E2IH, down_EHI, top_k, expert_bias, valid_T)
    if _autocast(hidden_TH):
        dtype = torch.get_autocast_dtype(hidden_TH.device.type)
        hidden_TH, gate_up_E2IH, down_EHI = hidden_TH.to(dtype), gate_up_E2IH.to(dtype), down_EHI.to(dtype)
    if not uses_triton(hidden_TH):
        weights = router_weight_EH, gate_up_E2IH, down_EHI
        return _layer(training_form(hidden_TH, down_EHI), hidden_TH, *weights, top_k, norm_topk_prob, scoring, expert_bias, valid_T)
    if not hidden_TH.dtype == gate_up_E2IH.dtype == down_EHI.dtype:
        dtypes = f"hidden states are {hidden_TH.dtype}, expert weights {gate_up_E2IH.dtype} and {down_EHI.dtype}"
        raise ValueError(f"{dtypes}: cast them to one dtype, or use torch.autocast")
    valid = torch.ones(len(hidden_TH), dtype=torch.bool, device=hidden_TH.device) if valid_T is None else valid_T
    weights, balance, z_loss, _, order, place, ends, counts, _ = route_op(
        hidden_TH, router_weight_EH, expert_bias, valid, top_k, norm_topk_prob, scoring == "sigmoid"
    )
    hidden, _ = experts_op(hidden_TH, weights, gate_up_E2IH, down_EHI, order, place, ends)
    return MoEOutput(hidden, balance, z_loss, counts)


def moe_hidden(
    hidden_TH: Tensor,
    router_weight_EH: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    top_k: int,
    norm_topk_prob: bool = True,
) -> Tensor:
    """``moe(...).hidden_TH`` alone, (T, H), as generation needs it: without the losses, and on a CPU in the form for few tokens."""
    weights = router_weight_EH, gate_up_E2IH, down_EHI
    if torch.is_grad_enabled() or uses_triton(hidden_TH) or _autocast(hidden_TH):
        return moe(hidden_TH, *weights, top_k, norm_topk_prob).hidden_TH
    _check(hidden_TH, *weights, top_k, None, None)
    routing = route(hidden_TH, router_weight_EH, top_k, norm_topk_prob)
    experts = generation_form(hidden_TH, down_EHI)
    return experts(hidden_TH, routing.weights_TK, routing.experts_TK, gate_up_E2IH, down_EHI)


def moe_reference(
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
    """What :func:`moe` computes, in plain PyTorch."""
    _check(hidden_TH, router_weight_EH, gate_up_E2IH, down_EHI, top_k, expert_bias, valid_T)
    weights = router_weight_EH, gate_up_E2IH, down_EHI
    return _layer(experts_reference, hidden_TH, *weights, top_k, norm_topk_prob, scoring, expert_bias, valid_T)


def balanced_bias(expert_bias_E: Tensor, counts_E: Tensor, rate: float = 1e-3) -> Tensor:
    """The bias of the next step: up for experts with less than the mean load, down for those with more (arXiv:2408.15664, alg. 1).

    Args:
        counts_E: load of the step, over all processes.
    """
    load = counts_E.to(expert_bias_E.dtype)
    return expert_bias_E + rate * (load.mean() - load).sign()


def _autocast(x: Tensor) -> bool:
    return torch.amp.is_autocast_available(x.device.type) and torch.is_autocast_enabled(x.device.type)


def _check(
    hidden_TH: Tensor,
    router_EH: Tensor,
    gate_up: Tensor,
    down: Tensor,
    top_k: int,
    expert_bias: Tensor | None,
    valid: Tensor | None,
) -> None:
    (tokens, size), experts, width = hidden_TH.shape, len(router_EH), down.shape[-1]
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k {top_k} must be between 1 and the number of experts, {experts}")
    wanted = {
        "router_weight": (router_EH, (experts, size)),
        "gate_up": (gate_up, (experts, 2 * width, size)),
        "down": (down, (experts, size, width)),
        "expert_bias": (expert_bias, (experts,)),
        "valid": (valid, (tokens,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, {experts} experts on {size} hidden numbers of {tokens} tokens need {shape}"
            )


def _layer(
    experts: Experts,
    hidden_TH: Tensor,
    router_weight_EH: Tensor,
    gate_up_E2IH: Tensor,
    down_EHI: Tensor,
    top_k: int,
    norm_topk_prob: bool,
    scoring: Scoring,
    expert_bias: Tensor | None,
    valid_T: Tensor | None,
) -> MoEOutput:
    count = len(router_weight_EH)
    routing = route(hidden_TH, router_weight_EH, top_k, norm_topk_prob, scoring, expert_bias)
    valid = torch.ones(len(hidden_TH), device=hidden_TH.device) if valid_T is None else valid_T.float()
    total = valid.sum().clamp(min=1)
    chosen_TE = F.one_hot(routing.experts_TK, count).sum(1) * valid[:, None]
    mean_probability_E = (routing.probabilities_TE * valid[:, None]).sum(0) / total
    load_balance = count * (chosen_TE.sum(0) / total * mean_probability_E).sum()
    z_loss = (routing.logits_TE.logsumexp(-1).square() * valid).sum() / total
    hidden = experts(hidden_TH, routing.weights_TK, routing.experts_TK, gate_up_E2IH, down_EHI)
    return MoEOutput(hidden, load_balance, z_loss, chosen_TE.sum(0).long())
