"""Mixture-of-experts layer: router and SwiGLU experts, dropless (Qwen2-MoE; Fedus et al., arXiv:2101.03961, for the losses).

:func:`moe` is the operation, :func:`moe_reference` its specification in plain PyTorch: tokens are sorted by expert (stable), each
expert computes its own contiguous rows, and the results are combined by a gather and a sum over K. On a GPU the operation runs as
Triton kernels; on a CPU as the reference, or as PyTorch's grouped products where these are faster or can be traced.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import uses_triton
from kernels.moe_experts.autograd import experts_op
from kernels.moe_experts.cpu import Experts, generation_form, training_form
from kernels.moe_experts.reference import experts_reference
from kernels.moe_routing.autograd import route_op
from kernels.moe_routing.reference import Scoring, route


@dataclass(frozen=True)
class MoEOutput:
    """Output of one layer.

    Attributes:
        hidden_TH: combined output of the experts, dtype of the input.
        load_balance_loss: scalar float32, Switch's loss in transformers' scale: K for an even load.
        z_loss: scalar float32, mean squared logsumexp of the router's logits (ST-MoE).
        counts_E: int64, (token, choice) pairs of each expert; masked tokens are not counted.
    """

    hidden_TH: Tensor
    load_balance_loss: Tensor
    z_loss: Tensor
    counts_E: Tensor


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
        hidden_TH: float32, float16 or bfloat16, same dtype as the experts' weights; the router computes in float32.
        expert_bias: (E,), see :func:`balanced_bias`; receives no gradient.
        valid_T: bool, tokens that contribute to losses and load (padding is computed but not counted); None = all.

    Raises:
        ValueError: more experts per token than experts, or inconsistent sizes.
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
    """Return only ``moe(...).hidden_TH`` (T, H), for generation: no losses, and on a CPU the implementation for few tokens."""
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
    """Compute :func:`moe` in plain PyTorch (specification)."""
    _check(hidden_TH, router_weight_EH, gate_up_E2IH, down_EHI, top_k, expert_bias, valid_T)
    weights = router_weight_EH, gate_up_E2IH, down_EHI
    return _layer(experts_reference, hidden_TH, *weights, top_k, norm_topk_prob, scoring, expert_bias, valid_T)


def balanced_bias(expert_bias_E: Tensor, counts_E: Tensor, rate: float = 1e-3) -> Tensor:
    """Return the bias for the next step: raised for experts below the mean load, lowered above it (arXiv:2408.15664, alg. 1).

    Args:
        counts_E: load of the step, summed over all processes.
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
    expected = {
        "router_weight": (router_EH, (experts, size)),
        "gate_up": (gate_up, (experts, 2 * width, size)),
        "down": (down, (experts, size, width)),
        "expert_bias": (expert_bias, (experts,)),
        "valid": (valid, (tokens,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)}, expected {shape} for {experts} experts, hidden size {size} and {tokens} tokens"
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
