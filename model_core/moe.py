"""Sparse feed-forward block of the backbone: routed experts and a gated shared expert, with the parameter names of Qwen2-MoE."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts, Qwen2MoeMLP, Qwen2MoeTopKRouter

from kernels.moe_layer import MoEOutput, moe, moe_hidden
from model_core.losses.reduction import all_reduce_sum, world_size


class RoutedExperts(Qwen2MoeExperts):
    """Qwen2-MoE's experts with the same parameters, computed by :func:`kernels.moe_layer.moe`, which adds the router's losses.

    Weights are read only while the module is called, when adapters (:mod:`model_core.adapters`) may stand in for them.
    """

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__(config)
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob

    def forward(self, hidden_TH: Tensor, router_EH: Tensor, routed: bool) -> tuple[Tensor, MoEOutput | None]:  # type: ignore[override]
        """Return the combined output of the experts (T, H), and that of the router, which is None if not ``routed``."""
        weights = router_EH, self.gate_up_proj, self.down_proj
        if not routed:
            return moe_hidden(hidden_TH, *weights, self.top_k, self.norm_topk_prob), None
        output = moe(hidden_TH, *weights, self.top_k, self.norm_topk_prob)
        return output.hidden_TH, output


class SparseMoeBlock(nn.Module):
    """Qwen2-MoE's block with the same parameters."""

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__()
        self.gate = Qwen2MoeTopKRouter(config)
        self.experts = RoutedExperts(config)
        self.shared_expert = Qwen2MoeMLP(config, intermediate_size=config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_BLH: Tensor, tokens_T: Tensor | None = None, routed: bool = True) -> tuple[Tensor, MoEOutput | None]:
        """Compute the block.

        Args:
            tokens_T: numbers, of all B * L, of the tokens to compute; None = all. For the others, padding, the block returns 0.
            routed: whether to compute the router's losses and load.

        Returns:
            Hidden states (B, L, H), and the output of the router (None if not ``routed``).
        """
        padded_TH = hidden_BLH.flatten(0, 1)
        hidden_TH = padded_TH if tokens_T is None else padded_TH[tokens_T]
        result_TH, output = self.experts(hidden_TH, self.gate.weight, routed)
        if output is not None and world_size() > 1:
            output = reduce_over_ranks(output, hidden_TH, self.gate.weight)
        result_TH = result_TH + torch.sigmoid(self.shared_expert_gate(hidden_TH)) * self.shared_expert(hidden_TH)
        if tokens_T is not None:
            result_TH = result_TH.new_zeros(padded_TH.shape).index_copy(0, tokens_T, result_TH)
        return result_TH.view_as(hidden_BLH), output


def reduce_over_ranks(output: MoEOutput, hidden_TH: Tensor, router_EH: Tensor) -> MoEOutput:
    """Compute the router's losses and load over all ranks, scaled so that their average over ranks is the global value.

    A balance loss over few sequences penalizes experts that specialize in one subject; the loss over all sequences does not (Qiu et
    al., arXiv:2501.11873), and it does not depend on their distribution over ranks. The kernel returns a product of two sums over
    its own tokens, so the probabilities (T x E) are recomputed here.
    """
    probability_E = F.linear(hidden_TH.float(), router_EH.float()).softmax(-1).sum(0)
    own = probability_E.new_tensor([len(hidden_TH)], dtype=torch.float64)
    global_sums = all_reduce_sum(torch.cat([output.counts_E.double(), own]))
    counts_E, total = global_sums[:-1], global_sums[-1].clamp(min=1)
    balance = len(router_EH) * world_size() * (counts_E / total * (probability_E / total)).sum()
    z_loss = output.z_loss * (own[0] * world_size() / total)
    return replace(output, load_balance_loss=balance.float(), z_loss=z_loss.float(), counts_E=counts_E.long())
