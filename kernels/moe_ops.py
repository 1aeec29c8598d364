"""The mixture's operations on a GPU as PyTorch sees them: the Triton kernels of ``kernels/gpu``, their shapes, their gradients.

Shape letters: T tokens, E experts, K experts of a token, I expert width, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Routed = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@torch.library.custom_op("omnimri::moe_route", mutates_args=())
def route_op(
    hidden: Tensor, router: Tensor, expert_bias: Tensor | None, valid: Tensor, top_k: int, normalised: bool, sigmoid: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Weights (T, K), load-balance loss, z-loss, experts (T, K), order (S,), place (T, K), ends, counts (E,), logits (T, E)."""
    from kernels.gpu import routing

    bias = None if expert_bias is None else expert_bias.contiguous()
    routed = routing.route(hidden.contiguous(), router.contiguous(), bias, valid.contiguous(), top_k, normalised, sigmoid)
    total = valid.sum().clamp(min=1)
    balance = len(router) * (routed.counts_E / total * (routed.probabilities_E / total)).sum()
    return (
        routed.weights_TK,
        balance,
        routed.z / total,
        routed.experts_TK,
        routed.order_S,
        routed.place_TK,
        routed.ends_E,
        routed.counts_E,
        routed.logits_TE,
    )


@route_op.register_fake
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
    dweights: Tensor,
    dbalance: Tensor,
    dz: Tensor,
    hidden: Tensor,
    router: Tensor,
    valid: Tensor,
    experts: Tensor,
    counts: Tensor,
    logits: Tensor,
    normalised: bool,
    sigmoid: bool,
) -> tuple[Tensor, Tensor]:
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
    dweights: Tensor,
    dbalance: Tensor,
    dz: Tensor,
    hidden: Tensor,
    router: Tensor,
    valid: Tensor,
    experts: Tensor,
    counts: Tensor,
    logits: Tensor,
    normalised: bool,
    sigmoid: bool,
) -> tuple[Tensor, Tensor]:
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
    saved = ctx.saved_tensors  # once: whoever computes a layer again in the backward pass gives them out a single time
    hidden, experts = saved[0], saved[3]
    zero = hidden.new_zeros((), dtype=torch.float32)
    dweights = hidden.new_zeros(experts.shape, dtype=torch.float32) if dweights is None else dweights
    dbalance, dz = (zero if gradient is None else gradient for gradient in (dbalance, dz))
    dhidden, drouter = _route_backward_op(dweights, dbalance, dz, *saved, ctx.normalised, ctx.sigmoid)
    return dhidden, drouter, None, None, None, None, None


route_op.register_autograd(_route_differentiate, setup_context=_route_setup)


@torch.library.custom_op("omnimri::moe_experts", mutates_args=())
def experts_op(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Combined output (T, H) and the pre-activations (S, 2 I), which are all that the backward pass needs of the experts."""
    from kernels.gpu import experts

    return experts.forward(hidden.contiguous(), weights.contiguous(), gate_up.contiguous(), down.contiguous(), order, place, ends)


@experts_op.register_fake
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


experts_op.register_autograd(_experts_differentiate, setup_context=_experts_setup)
