"""The experts of a mixture on a CPU: one specification, and forms of it that are faster for some sizes.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

GROUPED_EXPERTS = 64
"""On a CPU, so many experts compute faster as grouped products than in a loop (benchmarks/results)."""
FEW_TOKENS, SMALL_EXPERTS = 16, 2**18
"""On a CPU, without gradients, up to so many tokens go faster through all experts than through their own, if all experts together
have at most so many numbers in their second matrix (8 tokens, 4 experts of 128 x 256: 0.25 ms against 0.38 ms)."""
Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


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
    product = _grouped_mm if _grouped_fits(hidden_TH, down_EHI) else grouped_op
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


def training_form(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """The fastest form for training; in a traced graph the only one that reads no counts."""
    many = len(down_EHI) >= GROUPED_EXPERTS and _grouped_fits(hidden_TH, down_EHI)
    return experts_grouped if many or torch.compiler.is_compiling() else experts_reference


def generation_form(hidden_TH: Tensor, down_EHI: Tensor) -> Experts:
    """The fastest form for generation, where a step has one token for each sequence."""
    if torch.compiler.is_compiling() or len(hidden_TH) > FEW_TOKENS:
        return training_form(hidden_TH, down_EHI)
    if len(hidden_TH) == 1:
        return experts_of_one
    # In float16 an expert that nobody chose may overflow, and zero times that is not zero.
    small = down_EHI.numel() <= SMALL_EXPERTS and down_EHI.dtype != torch.float16
    return experts_dense if small else training_form(hidden_TH, down_EHI)


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
def grouped_op(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each expert's matrix (E, o, i) times its own rows (S, i), (S, o): a loop that a traced graph does not look into."""
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
    return grouped_op(dout, weight.transpose(1, 2), ends), _grouped_weight_op(dout, rows, ends), None


grouped_op.register_autograd(_grouped_differentiate, setup_context=_grouped_setup)


def _repeated(hidden_TH: Tensor, top_k: int) -> Tensor:
    """Every token K times. Rows are then taken by a permutation, whose gradient needs no atomic sum: the same bits every time."""
    return hidden_TH.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)


def _combined(rows_SH: Tensor, order_S: Tensor, weights_TK: Tensor) -> Tensor:
    place_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return (rows_SH[place_S].unflatten(0, weights_TK.shape) * weights_TK.unsqueeze(-1).to(rows_SH.dtype)).sum(1)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
