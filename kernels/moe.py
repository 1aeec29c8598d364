"""Mixture-of-experts layer: router and SwiGLU experts, dropless (Qwen2-MoE's form; Fedus et al., arXiv:2101.03961, for the losses).

:func:`moe` is the operation, :func:`moe_reference` its specification in plain PyTorch: tokens are sorted by expert (stable), each
expert computes its own contiguous rows, and the results are combined by a gather and a sum over K. On a GPU the operation is the
Triton kernels of ``kernels/gpu``; on a CPU it is the reference, or PyTorch's grouped products where these are faster or traceable.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dispatch import uses_triton

Scoring = Literal["softmax", "sigmoid"]
GROUPED_EXPERTS = 64
"""On a CPU, so many experts compute faster as grouped products than in a loop (benchmarks/results)."""
FEW_TOKENS, SMALL_EXPERTS = 16, 2**18
"""On a CPU, without gradients, up to so many tokens go faster through all experts than through their own, if all experts together
have at most so many numbers in their second matrix (8 tokens, 4 experts of 128 x 256: 0.25 ms against 0.38 ms)."""
Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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


def experts_reference(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Weighted sum over its K experts of ``down(silu(gate(x)) * up(x))`` for every token, (T, H)."""
    order = experts_TK.flatten().argsort(stable=True)
    counts = experts_TK.flatten().bincount(minlength=len(down_EHI)).tolist()
    rows = _repeated(hidden_TH, experts_TK.shape[1])[order].split(counts)
    # Unbinding keeps a single gradient tensor for all experts, so that one without tokens still gets its (zero) gradient.
    results = [
        F.linear(_swiglu(F.linear(rows_e, gate_up)), down)
        for rows_e, gate_up, down in zip(rows, gate_up_E2IH.unbind(), down_EHI.unbind(), strict=True)
    ]
    return _combined(torch.cat(results), order, weights_TK)


def experts_grouped(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """As :func:`experts_reference`, with PyTorch's grouped products: no loop, no count read by the host."""
    order = experts_TK.flatten().argsort(stable=True)
    ends = F.one_hot(experts_TK.flatten(), len(down_EHI)).sum(0).cumsum(0).int()
    rows = _repeated(hidden_TH, experts_TK.shape[1])[order]
    product = _grouped_mm if _grouped_fits(hidden_TH, down_EHI) else _grouped_op
    activation = _swiglu(product(rows, gate_up_E2IH, ends))
    return _combined(product(activation, down_EHI, ends), order, weights_TK)


def experts_of_one(hidden_1H: Tensor, weights_1K: Tensor, experts_1K: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """As :func:`experts_reference` for a single token: nothing to sort, and only the chosen experts are touched."""
    chosen = [F.linear(_swiglu(F.linear(hidden_1H, gate_up_E2IH[e])), down_EHI[e]) for e in experts_1K[0].tolist()]
    return weights_1K.to(hidden_1H.dtype) @ torch.cat(chosen)


def experts_dense(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """As :func:`experts_reference`, with every token through every expert, most of them counting zero: two products in all."""
    activation_ETI = _swiglu(hidden_TH @ gate_up_E2IH.transpose(1, 2))
    weights_TE = weights_TK.new_zeros(len(hidden_TH), len(down_EHI)).scatter_(1, experts_TK, weights_TK)
    weighted_ETI = activation_ETI * weights_TE.t().unsqueeze(-1).to(hidden_TH.dtype)
    return (weighted_ETI @ down_EHI.transpose(1, 2)).sum(0)


def _cpu_experts(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """The fastest form for training; in a traced graph the only one that reads no counts."""
    many = len(down_EHI) >= GROUPED_EXPERTS and _grouped_fits(hidden_TH, down_EHI)
    return experts_grouped if many or torch.compiler.is_compiling() else experts_reference


def _cpu_experts_without_gradient(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """The fastest form for generation, where a step has one token for each sequence."""
    if torch.compiler.is_compiling() or len(hidden_TH) > FEW_TOKENS:
        return _cpu_experts(hidden_TH, down_EHI)
    if len(hidden_TH) == 1:
        return experts_of_one
    # In float16 an expert that nobody chose may overflow, and zero times that is not zero.
    small = down_EHI.numel() <= SMALL_EXPERTS and down_EHI.dtype != torch.float16
    return experts_dense if small else _cpu_experts(hidden_TH, down_EHI)


def _grouped_fits(hidden_TH: Tensor, down_EHI: Tensor) -> bool:
    """Whether ``grouped_mm`` takes these dtypes and rows; its fake kernel, which traces, knows bfloat16 only."""
    known = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.float32, torch.float16, torch.bfloat16)
    return (
        hidden_TH.dtype == down_EHI.dtype
        and hidden_TH.dtype in known
        and all(size * hidden_TH.element_size() % 16 == 0 for size in down_EHI.shape[1:])
    )


def _grouped_mm(rows_Si: Tensor, weight_Eoi: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(rows_Si, weight_Eoi.transpose(1, 2), offs=ends_E)


@torch.library.custom_op("omnimri::grouped_product", mutates_args=())
def _grouped_op(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each expert's matrix (E, o, i) times its own rows (S, i), (S, o): a loop that a traced graph does not look into."""
    out, start = rows.new_empty(len(rows), weight.shape[1]), 0
    for matrix, end in zip(weight.unbind(), ends.tolist(), strict=True):
        torch.mm(rows[start:end], matrix.t(), out=out[start:end])
        start = end
    return out


@_grouped_op.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[1])


@torch.library.custom_op("omnimri::grouped_product_weight", mutates_args=())
def _grouped_weight_op(dout: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Gradient of the matrices (E, o, i)."""
    dweight, start = rows.new_empty(len(ends), dout.shape[1], rows.shape[1]), 0
    for matrix, end in zip(dweight.unbind(), ends.tolist(), strict=True):
        torch.mm(dout[start:end].t(), rows[start:end], out=matrix)
        start = end
    return dweight


@_grouped_weight_op.register_fake
def _(dout: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(ends), dout.shape[1], rows.shape[1])


def _grouped_setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, None]:
    rows, weight, ends = ctx.saved_tensors
    return _grouped_op(dout, weight.transpose(1, 2), ends), _grouped_weight_op(dout, rows, ends), None


_grouped_op.register_autograd(_grouped_differentiate, setup_context=_grouped_setup)


def _repeated(hidden_TH: Tensor, top_k: int) -> Tensor:
    """Every token K times. Rows are then taken by a permutation, whose gradient needs no atomic sum: the same bits every time."""
    return hidden_TH.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)


def _combined(rows_SH: Tensor, order_S: Tensor, weights_TK: Tensor) -> Tensor:
    place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return (rows_SH[place_S].unflatten(0, weights_TK.shape) * weights_TK.unsqueeze(-1).to(rows_SH.dtype)).sum(1)


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
        return _layer(_cpu_experts(hidden_TH, down_EHI), hidden_TH, *weights, top_k, norm_topk_prob, scoring, expert_bias, valid_T)
    if not hidden_TH.dtype == gate_up_E2IH.dtype == down_EHI.dtype:
        dtypes = f"hidden states are {hidden_TH.dtype}, expert weights {gate_up_E2IH.dtype} and {down_EHI.dtype}"
        raise ValueError(f"{dtypes}: cast them to one dtype, or use torch.autocast")
    valid = torch.ones(len(hidden_TH), dtype=torch.bool, device=hidden_TH.device) if valid_T is None else valid_T
    weights, balance, z_loss, _, order, place, ends, counts, _ = _route_op(
        hidden_TH, router_weight_EH, expert_bias, valid, top_k, norm_topk_prob, scoring == "sigmoid"
    )
    hidden, _ = _experts_op(hidden_TH, weights, gate_up_E2IH, down_EHI, order, place, ends)
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
    experts = _cpu_experts_without_gradient(hidden_TH, down_EHI)
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
            raise ValueError(f"{name} is {tuple(tensor.shape)}, {experts} experts on {size} hidden numbers of {tokens} tokens need "
                             f"{shape}")  # fmt: skip


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


Routed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("omnimri::moe_route", mutates_args=())
def _route_op(
    hidden: Tensor, router: Tensor, expert_bias: Tensor | None, valid: Tensor, top_k: int, normalised: bool, sigmoid: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights (T, K), load-balance loss, z-loss, experts (T, K), order (S,), place (T, K), ends, counts (E,), logits (T, E)."""
    from kernels.gpu import routing

    bias = None if expert_bias is None else expert_bias.contiguous()
    routed = routing.route(hidden.contiguous(), router.contiguous(), bias, valid.contiguous(), top_k, normalised, sigmoid)
    total = valid.sum().clamp(min=1)
    balance = len(router) * (routed.counts_E / total * (routed.probabilities_E / total)).sum()
    return (routed.weights_TK, balance, routed.z / total, routed.experts_TK, routed.order_S, routed.place_TK, routed.ends_E,
            routed.counts_E, routed.logits_TE)  # fmt: skip


@_route_op.register_fake
def _(
    hidden: Tensor, router: Tensor, expert_bias: Tensor | None, valid: Tensor, top_k: int, normalised: bool, sigmoid: bool
) -> Routed:
    tokens, experts = len(hidden), len(router)
    number = hidden.new_empty((), dtype=torch.float32)
    pairs = hidden.new_empty(tokens, top_k, dtype=torch.int32)
    return (
        hidden.new_empty(tokens, top_k, dtype=torch.float32),
        number,
        torch.empty_like(number),
        pairs,
        hidden.new_empty(tokens * top_k, dtype=torch.int32),
        torch.empty_like(pairs),
        hidden.new_empty(experts, dtype=torch.int32),
        hidden.new_empty(experts, dtype=torch.int64),
        hidden.new_empty(tokens, experts, dtype=torch.float32),
    )


@torch.library.custom_op("omnimri::moe_route_backward", mutates_args=())
def _route_backward_op(
    dweights: Tensor, dbalance: Tensor, dz: Tensor, hidden: Tensor, router: Tensor, valid: Tensor, experts: Tensor, counts: Tensor,
    logits: Tensor, normalised: bool, sigmoid: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the hidden states and of the router's weights."""
    from kernels.gpu import routing

    total = valid.sum().clamp(min=1)
    load = len(router) * counts / total.square()
    dtype = torch.promote_types(hidden.dtype, router.dtype)
    dtype = torch.float32 if dtype == torch.float16 else dtype  # gradients of the losses are below float16's smallest number
    gradients = load.float(), dweights, dbalance.float(), (dz / total).float()
    dlogits = routing.route_backward(
        logits, experts, valid.contiguous(), *gradients, normalised=normalised, sigmoid=sigmoid, dtype=dtype
    )
    with torch.autocast(hidden.device.type, enabled=False):
        return (dlogits @ router.to(dtype)).to(hidden.dtype), (dlogits.t() @ hidden.to(dtype)).to(router.dtype)


@_route_backward_op.register_fake
def _(
    dweights: Tensor, dbalance: Tensor, dz: Tensor, hidden: Tensor, router: Tensor, valid: Tensor, experts: Tensor, counts: Tensor,
    logits: Tensor, normalised: bool, sigmoid: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return hidden.new_empty(hidden.shape), router.new_empty(router.shape)


def _route_setup(ctx: Any, inputs: tuple[Any, ...], output: Routed) -> None:
    hidden, router, _, valid, _, ctx.normalised, ctx.sigmoid = inputs
    _, _, _, experts, _, _, _, counts, logits = output
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden, router, valid, experts, counts, logits)


def _route_differentiate(
    ctx: Any, dweights: Tensor | None, dbalance: Tensor | None, dz: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    hidden, experts = ctx.saved_tensors[0], ctx.saved_tensors[3]
    zero = hidden.new_zeros((), dtype=torch.float32)
    dweights = hidden.new_zeros(experts.shape, dtype=torch.float32) if dweights is None else dweights
    dbalance, dz = (zero if gradient is None else gradient for gradient in (dbalance, dz))
    dhidden, drouter = _route_backward_op(dweights, dbalance, dz, *ctx.saved_tensors, ctx.normalised, ctx.sigmoid)
    return dhidden, drouter, None, None, None, None, None


_route_op.register_autograd(_route_differentiate, setup_context=_route_setup)


@torch.library.custom_op("omnimri::moe_experts", mutates_args=())
def _experts_op(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Combined output (T, H) and the pre-activations (S, 2 I), which are all that the backward pass needs of the experts."""
    from kernels.gpu import experts

    return experts.forward(hidden.contiguous(), weights.contiguous(), gate_up.contiguous(), down.contiguous(), order, place, ends)


@_experts_op.register_fake
def _(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), hidden.new_empty(len(order), gate_up.shape[1])


@torch.library.custom_op("omnimri::moe_experts_backward", mutates_args=())
def _experts_backward_op(
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
    """Gradients of the hidden states, the weights and the experts' two matrices."""
    from kernels.gpu import experts

    flat = dout.contiguous(), hidden.contiguous(), weights.contiguous(), gate_up.contiguous(), down.contiguous()
    return experts.backward(*flat, order, place, ends, pre)


@_experts_backward_op.register_fake
def _(
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
    shapes = (hidden, weights, gate_up, down)
    dhidden, dweights, dgate_up, ddown = (x.new_empty(x.shape) for x in shapes)
    return dhidden, dweights, dgate_up, ddown


def _experts_setup(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else zeros the size of the pre-activations
    ctx.save_for_backward(*inputs, output[1])


def _experts_differentiate(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 7
    return *_experts_backward_op(dout, *ctx.saved_tensors), None, None, None


_experts_op.register_autograd(_experts_differentiate, setup_context=_experts_setup)
