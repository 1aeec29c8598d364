"""Sparse feed-forward block of the backbone: routed experts and a gated shared expert, in Qwen2-MoE's names."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts, Qwen2MoeMLP, Qwen2MoeTopKRouter

from kernels.moe import MoEOutput, moe, moe_hidden


class SparseMoeBlock(nn.Module):
    """Qwen2-MoE's block with the same parameters, computed by :func:`kernels.moe.moe`, which also gives the router's losses."""

    def __init__(self, config: Qwen2MoeConfig) -> None:
        super().__init__()
        self.top_k, self.norm_topk_prob = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = Qwen2MoeTopKRouter(config)
        self.experts = Qwen2MoeExperts(config)
        self.shared_expert = Qwen2MoeMLP(config, intermediate_size=config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, hidden_BLH: Tensor, valid_BL: Tensor, routed: bool = True) -> tuple[Tensor, MoEOutput | None]:
        """(B, L, H) and what the router did, unless ``routed`` is False; ``valid_BL`` (bool) are the tokens that count in that."""
        hidden_TH = hidden_BLH.flatten(0, 1)
        weights = self.gate.weight, self.experts.gate_up_proj, self.experts.down_proj
        if routed:
            output = moe(hidden_TH, *weights, self.top_k, self.norm_topk_prob, valid_T=valid_BL.flatten())
            chosen_TH = output.hidden_TH
        else:
            output, chosen_TH = None, moe_hidden(hidden_TH, *weights, self.top_k, self.norm_topk_prob)
        shared_TH = torch.sigmoid(self.shared_expert_gate(hidden_TH)) * self.shared_expert(hidden_TH)
        return (chosen_TH + shared_TH).view_as(hidden_BLH), output
