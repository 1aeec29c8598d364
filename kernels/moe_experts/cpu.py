"""The experts on a CPU: implementations that are faster than the reference for some sizes, and the choice between them.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.moe_experts.reference import combine_rows, experts_reference, repeat_tokens, swiglu

GROUPED_EXPERTS = 64
"""From this number of experts on, grouped products are faster than a loop on a CPU (benchmarks/results)."""


FEW_TOKENS, SMALL_EXPERTS = 16, 2**18
"""Without gradients, up to this number of tokens it is faster to compute all experts than only the chosen ones, if the second
matrices have at most this number of elements (8 tokens, 4 experts of 128 x 256: 0.25 ms against 0.38 ms)."""


Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def experts_grouped(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Compute :func:`experts_reference` with PyTorch's grouped products: no loop, and no count is read by the host."""
    order = experts_TK.flatten().argsort(stable=True)
    ends = F.one_hot(experts_TK.flatten(), len(down_EHI)).sum(0).cumsum(0).int()
    rows = repeat_tokens(hidden_TH, experts_TK.shape[1])[order]
    product = _grouped_mm if _grouped_fits(hidden_TH, down_EHI) else grouped_op
    activation = swiglu(product(rows, gate_up_E2IH, ends))
    return combine_rows(product(activation, down_EHI, ends), order, weights_TK)


def experts_of_one(hidden_1H: Tensor, weights_1K: Tensor, experts_1K: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Compute :func:`experts_reference` for a single token: no sort, and only the chosen experts are read."""
    chosen = [F.linear(swiglu(F.linear(hidden_1H, gate_up_E2IH[e])), down_EHI[e]) for e in experts_1K[0].tolist()]
    return weights_1K.to(hidden_1H.dtype) @ torch.cat(chosen)


def experts_dense(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Compute :func:`experts_reference` with every expert for every token, most with weight zero: two products in all."""
    activation_ETI = swiglu(hidden_TH @ gate_up_E2IH.transpose(1, 2))
    weights_TE = weights_TK.new_zeros(len(hidden_TH), len(down_EHI)).scatter_(1, experts_TK, weights_TK)
    weighted_ETI = activation_ETI * weights_TE.t().unsqueeze(-1).to(hidden_TH.dtype)
    return (weighted_ETI @ down_EHI.transpose(1, 2)).sum(0)


def training_form(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """Return the fastest implementation for training; in a traced graph, the one that reads no counts."""
    many = len(down_EHI) >= GROUPED_EXPERTS and _grouped_fits(hidden_TH, down_EHI)
    return experts_grouped if many or torch.compiler.is_compiling() else experts_reference


def generation_form(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """Return the fastest implementation for generation, where a step has one token per sequence."""
    if torch.compiler.is_compiling() or len(hidden_TH) > FEW_TOKENS:
        return training_form(hidden_TH, down_EHI)
    if len(hidden_TH) == 1:
        return experts_of_one
    # In float16 an expert that was not chosen may overflow, and zero times infinity is NaN.
    small = down_EHI.numel() <= SMALL_EXPERTS and down_EHI.dtype != torch.float16
    return experts_dense if small else training_form(hidden_TH, down_EHI)


def _grouped_fits(hidden_TH: Tensor, down_EHI: Tensor) -> bool:
    """Return whether ``grouped_mm`` supports these dtypes and sizes; its fake kernel for tracing supports bfloat16 only."""
    known = (torch.bfloat16,) if torch.compiler.is_compiling() else (torch.float32, torch.float16, torch.bfloat16)
    return (
        hidden_TH.dtype == down_EHI.dtype
        and hidden_TH.dtype in known
        and all(size * hidden_TH.element_size() % 16 == 0 for size in down_EHI.shape[1:])
    )


def _grouped_mm(rows_Si: Tensor, weight_Eoi: Tensor, ends_E: Tensor) -> Tensor:
    return F.grouped_mm(rows_Si, weight_Eoi.transpose(1, 2), offs=ends_E)


@torch.library.custom_op("omnimri::grouped_product", mutates_args=())
def grouped_op(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply each expert's rows (S, i) by its matrix (E, o, i), giving (S, o): a loop that tracing does not enter."""
    out, start = rows.new_empty(len(rows), weight.shape[1]), 0
    for matrix, end in zip(weight.unbind(), ends.tolist(), strict=True):
        torch.mm(rows[start:end], matrix.t(), out=out[start:end])
        start = end
    return out


@grouped_op.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[1])


@torch.library.custom_op("omnimri::grouped_product_weight", mutates_args=())
def _grouped_weight_op(dout: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
    """Return the gradient of the matrices (E, o, i)."""
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
    return grouped_op(dout, weight.transpose(1, 2), ends), _grouped_weight_op(dout, rows, ends), None


grouped_op.register_autograd(_grouped_differentiate, setup_context=_grouped_setup)
