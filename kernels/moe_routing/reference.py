"""Specification of mixture-of-experts routing in plain PyTorch: scores, choice and weights of the experts.

Shape letters: T tokens, H hidden size, E experts, K experts of a token, S = T * K rows sorted by expert.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scoring = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Routing:
    """Assignment of tokens to experts.

    Attributes:
        weights_TK: float32, weight of each chosen expert.
        experts_TK: int64, the chosen experts, best first.
        probabilities_TE: float32, scores of all experts.
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
    """Choose K experts per token, in float32 (float64 for float64 input).

    ``expert_bias`` (E,) influences the choice but not the weights (auxiliary-loss-free balancing, arXiv:2408.15664).
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
