"""Routing on a GPU as a PyTorch operation: registration with ``torch.library``, shapes for tracing, and gradients.

Shape letters: T tokens, H hidden size, E experts, K experts of a token, S = T * K rows sorted by expert.
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
    """Return weights (T, K), load-balance loss, z-loss, experts (T, K), order (S,), place (T, K), ends, counts, logits (T, E)."""
    from kernels.moe_routing import triton_forward

    bias = None if expert_bias is None else expert_bias.contiguous()
    routed = triton_forward.forward(hidden.contiguous(), router.contiguous(), bias, valid.contiguous(), top_k, normalised, sigmoid)
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
    """Return the gradients of the hidden states and of the router's weights."""
    from kernels.moe_routing import triton_backward

    total = valid.sum().clamp(min=1)
    load = len(router) * counts / total.square()
    dtype = torch.promote_types(hidden.dtype, router.dtype)
    dtype = torch.float32 if dtype == torch.float16 else dtype  # gradients of the losses underflow in float16
    gradients = load.float(), dweights, dbalance.float(), (dz / total).float()
    dlogits = triton_backward.backward(
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
    saved = ctx.saved_tensors  # read once: activation checkpointing allows only one read
    hidden, experts = saved[0], saved[3]
    zero = hidden.new_zeros((), dtype=torch.float32)
    dweights = hidden.new_zeros(experts.shape, dtype=torch.float32) if dweights is None else dweights
    dbalance, dz = (zero if gradient is None else gradient for gradient in (dbalance, dz))
    dhidden, drouter = _route_backward_op(dweights, dbalance, dz, *saved, ctx.normalised, ctx.sigmoid)
    return dhidden, drouter, None, None, None, None, None


route_op.register_autograd(_route_differentiate, setup_context=_route_setup)
