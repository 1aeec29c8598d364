"""Padding costs no arithmetic in feed-forward blocks, and changes nothing."""

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2MoeConfig

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.moe import RoutedExperts, SparseMoeBlock

CHOSEN = torch.tensor([0, 1, 2, 5, 6])
"""Numbers of the tokens of two sequences of five tokens that are no padding."""


@pytest.fixture
def block() -> SparseMoeBlock:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}
    block = SparseMoeBlock(Qwen2MoeConfig(**sizes, num_experts=4, num_experts_per_tok=2, norm_topk_prob=True))
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def _gradients(block: SparseMoeBlock, hidden_BLH: Tensor, tokens_T: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
    leaf = hidden_BLH.clone().requires_grad_()
    result, routed = block(leaf, tokens_T)
    assert routed is not None
    (result.square().sum() + routed.load_balance_loss + routed.z_loss).backward()
    gradients = [parameter.grad.clone() for parameter in block.parameters()]  # type: ignore[union-attr]
    block.zero_grad()
    assert leaf.grad is not None
    return result.detach(), leaf.grad, gradients


def test_chosen_tokens_are_computed_as_if_there_were_no_others(block: SparseMoeBlock) -> None:
    hidden = torch.randn(2, 5, 8)
    result, at_tokens, at_weights = _gradients(block, hidden, CHOSEN)
    alone, alone_at_tokens, alone_at_weights = _gradients(block, hidden.flatten(0, 1)[CHOSEN][None], None)
    torch.testing.assert_close(result.flatten(0, 1)[CHOSEN], alone[0])
    torch.testing.assert_close(at_tokens.flatten(0, 1)[CHOSEN], alone_at_tokens[0])
    torch.testing.assert_close(at_weights, alone_at_weights)
    others = torch.ones(10, dtype=torch.bool).index_fill(0, CHOSEN, False)
    assert not result.flatten(0, 1)[others].any() and not at_tokens.flatten(0, 1)[others].any()


def test_experts_see_the_tokens_of_the_texts_and_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """In training, on either side; a sequence has the hidden states that it has without padding."""
    torch.manual_seed(0)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug")).train()
    seen: list[int] = []
    forward = RoutedExperts.forward

    def counted(self: RoutedExperts, hidden_TH: Tensor, router_EH: Tensor, routed: bool) -> object:
        seen.append(len(hidden_TH))
        return forward(self, hidden_TH, router_EH, routed)

    monkeypatch.setattr(RoutedExperts, "forward", counted)
    ids = torch.randint(5, 50, (2, 9))
    for padding in (slice(6, 9), slice(0, 3)):
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[1, padding] = 0
        hidden = model(ids, mask).hidden_states
        assert set(seen) == {15}
        seen.clear()
        text = ids[1:][mask[1:].bool()][None]
        torch.testing.assert_close(hidden[1][mask[1].bool()], model(text).hidden_states[0], atol=1e-5, rtol=1e-4)
        assert set(seen) == {6}
        seen.clear()
