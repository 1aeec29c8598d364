"""The mixture of experts is that of transformers' Qwen2-MoE."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2MoeConfig
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock, load_balancing_loss_func

from kernels.moe import experts_forward, moe, route
from model_core.moe import SparseMoeBlock


def _config() -> Qwen2MoeConfig:
    return Qwen2MoeConfig(
        hidden_size=16,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        num_experts=5,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    )


def test_a_block_is_that_of_transformers() -> None:
    torch.manual_seed(0)
    theirs = Qwen2MoeSparseMoeBlock(_config())
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ours = SparseMoeBlock(_config())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 16)
    hidden, routed = ours(x, torch.ones(3, 7, dtype=torch.bool))
    torch.testing.assert_close(hidden, theirs(x), atol=1e-5, rtol=1e-5)
    logits = theirs.gate(x)[0]
    torch.testing.assert_close(routed.load_balance_loss, load_balancing_loss_func((logits,), 5, 2))
    torch.testing.assert_close(routed.z_loss, logits.logsumexp(-1).square().mean())


def test_padding_is_not_counted() -> None:
    torch.manual_seed(0)
    weights = torch.randn(4, 8), torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    hidden = torch.randn(10, 8)
    valid = torch.arange(10) < 6
    masked, alone = moe(hidden, *weights, top_k=2, valid_T=valid), moe(hidden[:6], *weights, top_k=2)
    torch.testing.assert_close(masked.load_balance_loss, alone.load_balance_loss)
    torch.testing.assert_close(masked.z_loss, alone.z_loss)
    assert torch.equal(masked.counts_E, alone.counts_E)


def test_a_bias_changes_the_choice_and_not_the_weight() -> None:
    torch.manual_seed(0)
    hidden, router = torch.randn(6, 8), torch.randn(4, 8)
    plain = route(hidden, router, 1, norm_topk_prob=False)
    forced = route(hidden, router, 1, norm_topk_prob=False, expert_bias=torch.tensor([0.0, 0, 0, 10]))
    assert (forced.experts_TK == 3).all()
    torch.testing.assert_close(forced.weights_TK[:, 0], plain.probabilities_TE[:, 3])


def test_every_expert_gets_a_gradient_even_without_tokens() -> None:
    gate_up, down = torch.randn(3, 4, 4, requires_grad=True), torch.randn(3, 4, 2, requires_grad=True)
    experts = torch.zeros(5, 1, dtype=torch.long)
    experts_forward(torch.randn(5, 4), torch.ones(5, 1), experts, gate_up, down).sum().backward()
    assert gate_up.grad is not None and down.grad is not None
    assert gate_up.grad[0].abs().sum() > 0 and gate_up.grad[1:].abs().sum() == 0


@given(tokens=st.integers(1, 9), experts=st.integers(1, 7), data=st.data())
@settings(max_examples=30, deadline=None)
def test_it_is_the_sum_over_the_chosen_experts(tokens: int, experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    torch.manual_seed(tokens * 100 + experts)
    x = torch.randn(tokens, 6, dtype=torch.float64)
    router = torch.randn(experts, 6, dtype=torch.float64)
    gate_up, down = torch.randn(experts, 8, 6, dtype=torch.float64), torch.randn(experts, 6, 4, dtype=torch.float64)
    routing = route(x, router, top_k)
    expected = torch.zeros_like(x)
    for t in range(tokens):
        for k in range(top_k):
            e = int(routing.experts_TK[t, k])
            gate, up = (gate_up[e] @ x[t]).chunk(2)
            expected[t] += float(routing.weights_TK[t, k]) * (down[e] @ (torch.nn.functional.silu(gate) * up))
    torch.testing.assert_close(moe(x, router, gate_up, down, top_k).hidden_TH, expected, atol=1e-6, rtol=1e-6)


def test_more_choices_than_experts_is_refused() -> None:
    with pytest.raises(ValueError, match="top_k 3"):
        moe(torch.zeros(1, 2), torch.zeros(2, 2), torch.zeros(2, 4, 2), torch.zeros(2, 2, 2), top_k=3)
