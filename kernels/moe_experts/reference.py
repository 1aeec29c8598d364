"""Specification of the SwiGLU experts of a mixture in plain PyTorch.

Shape letters: T tokens, H hidden size, E experts, I expert width, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def experts_reference(hidden_TH: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor) -> Tensor:
    """Return the weighted sum of ``down(silu(gate(x)) * up(x))`` over the K experts of every token, (T, H)."""
    order = experts_TK.flatten().argsort(stable=True)
    counts = experts_TK.flatten().bincount(minlength=len(down_EHI)).tolist()
    rows = repeat_tokens(hidden_TH, experts_TK.shape[1])[order].split(counts)
    # Unbinding keeps one gradient tensor for all experts, so that an expert without tokens gets its (zero) gradient, too.
    results = [
        F.linear(swiglu(F.linear(rows_e, gate_up)), down)
        for rows_e, gate_up, down in zip(rows, gate_up_E2IH.unbind(), down_EHI.unbind(), strict=True)
    ]
    return combine_rows(torch.cat(results), order, weights_TK)


def repeat_tokens(hidden_TH: Tensor, top_k: int) -> Tensor:
    """Repeat every token K times. Rows are then selected by a permutation, whose gradient needs no atomic sum (deterministic)."""
    return hidden_TH.unsqueeze(1).expand(-1, top_k, -1).flatten(0, 1)


def combine_rows(rows_SH: Tensor, order_S: Tensor, weights_TK: Tensor) -> Tensor:
    """Return the weighted sum (T, H) of the rows of each token; row ``order_S[i]`` is the i-th sorted one."""
    row_S = torch.empty_like(order_S).scatter_(0, order_S, torch.arange(len(order_S), device=order_S.device))
    return (rows_SH[row_S].unflatten(0, weights_TK.shape) * weights_TK.unsqueeze(-1).to(rows_SH.dtype)).sum(1)


def swiglu(gate_up: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` of packed pre-activations (..., 2 I)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
