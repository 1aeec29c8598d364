"""Sparse feed-forward block of the backbone: routed experts and a gated shared expert, in Qwen2-MoE's names."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts, Qwen2MoeMLP, Qwen2MoeTopKRouter

from kernels.moe_layer import MoEOutput, moe, moe_hidden
from model_core.losses.reduction import all_reduce_sum, world_size


class SparseMoeBlock(nn.Module):
    """Qwen2-MoE's block with the same parameters, computed by :func:`kernels.moe_layer.moe`, which adds the router's losses."""

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
            if world_size() > 1:
                output = over_all_ranks(output, hidden_TH, self.gate.weight, valid_BL.flatten())
        else:
            output, chosen_TH = None, moe_hidden(hidden_TH, *weights, self.top_k, self.norm_topk_prob)
        shared_TH = torch.sigmoid(self.shared_expert_gate(hidden_TH)) * self.shared_expert(hidden_TH)
        return (chosen_TH + shared_TH).view_as(hidden_BLH), output


def over_all_ranks(output: MoEOutput, hidden_TH: Tensor, router_EH: Tensor, valid_T: Tensor) -> MoEOutput:
    """The router's losses and load over the tokens of all ranks, scaled so that the average over ranks is the global value.

    The loss of a few sequences punishes experts for knowing one subject; that of all does not (Qiu et al., arXiv:2501.11873), and
    does not depend on how sequences are shared out. The kernel gives a product of two sums over its own tokens, so the
    probabilities are computed again here: T x E numbers.
    """
    probability_E = (F.linear(hidden_TH.float(), router_EH.float()).softmax(-1) * valid_T[:, None]).sum(0)
    own = valid_T.sum().double()
    everywhere = all_reduce_sum(torch.cat([output.counts_E.double(), own[None]]))
    counts_E, total = everywhere[:-1], everywhere[-1].clamp(min=1)
    balance = len(router_EH) * world_size() * (counts_E / total * (probability_E / total)).sum()
    z_loss = output.z_loss * (own * world_size() / total)
    return replace(output, load_balance_loss=balance.float(), z_loss=z_loss.float(), counts_E=counts_E.long())
