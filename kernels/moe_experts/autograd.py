"""The experts on a GPU as a PyTorch operation: registration with ``torch.library``, shapes for tracing, and gradients.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("omnimri::moe_experts", mutates_args=())
def experts_op(
    hidden: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, order: Tensor, place: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the combined output (T, H) and the pre-activations (S, 2 I), which the backward pass needs."""
    from kernels.moe_experts import triton_forward

    return triton_forward.forward(
        hidden.contiguous(), weights.contiguous(), gate_up.contiguous(), down.contiguous(), order, place, ends
    )


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
    """Return the gradients of the hidden states, the weights and the experts' two matrices."""
    from kernels.moe_experts import triton_backward

    flat = dout.contiguous(), hidden.contiguous(), weights.contiguous(), gate_up.contiguous(), down.contiguous()
    return triton_backward.backward(*flat, order, place, ends, pre)


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
    ctx.set_materialize_grads(False)  # otherwise zeros of the size of the pre-activations would be allocated
    ctx.save_for_backward(*inputs, output[1])


def _experts_differentiate(ctx: Any, dout: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 7
    return *_experts_backward_op(dout, *ctx.saved_tensors), None, None, None


experts_op.register_autograd(_experts_differentiate, setup_context=_experts_setup)
