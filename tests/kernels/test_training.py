"""A network learns the same with the Triton kernels as with the specifications."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2MoeConfig

import model_core.moe
import model_core.swin
from kernels.dispatch import interpreted
from kernels.moe_layer import moe_reference
from kernels.window_attention import window_attention_reference
from model_core.moe import SparseMoeBlock
from model_core.swin import SwinBlock

TOLERANCE = 1e-3
RUNS = [("cpu", 8), pytest.param("cpu", 100, marks=pytest.mark.slow), pytest.param("cuda", 100, marks=pytest.mark.gpu)]


class _Tiny(nn.Module):
    """Two Swin blocks, one of them shifted over a padded grid, and a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(16, 1, (1, 2, 2), shifted) for shifted in (False, True))
        self.experts = SparseMoeBlock(
            Qwen2MoeConfig(
                hidden_size=16,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=8,
                num_experts=4,
                num_experts_per_tok=2,
                norm_topk_prob=True,
            )
        )
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x_BDHWc: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x_BDHWc = block(x_BDHWc)
        hidden = x_BDHWc.flatten(1, 3)
        moved, routed = self.experts(hidden)
        return hidden + moved, routed.load_balance_loss * 0.01 + routed.z_loss * 1e-3


def _losses(device: str, steps: int) -> list[float]:
    """The loss of every step of learning one random field by heart."""
    torch.manual_seed(0)
    network = _Tiny().to(device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 1, 3, 4, 16, generator=generator).to(device)
    target = torch.randn(1, 12, 16, generator=generator).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        out, balance = network(x)
        loss = (out - target).square().mean() + balance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("device", "steps"), RUNS)
def test_training_with_kernels_follows_the_specification(device: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with interpreted() if device == "cpu" else contextlib.nullcontext():
        ours = _losses(device, steps)

    def attention(*arguments: Any, pad_qkv: Tensor) -> Tensor:
        return window_attention_reference(*arguments, pad_qkv=pad_qkv)

    monkeypatch.setattr(model_core.swin, "window_attention", attention)
    monkeypatch.setattr(model_core.moe, "moe", moe_reference)
    expected = _losses(device, steps)
    assert expected[-1] < (0.1 if steps == 100 else 1.0) * expected[0]
    assert max(abs(x - y) for x, y in zip(ours, expected, strict=True)) <= TOLERANCE
