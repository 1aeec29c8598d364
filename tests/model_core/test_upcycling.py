"""Upcycling a dense Qwen2 to a mixture of experts keeps its logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.upcycling import upcycle


def _dense(tied: bool) -> Qwen2ForCausalLM:
    """Return a random checkpoint of the debug preset's sizes, with weights that are large enough for logits to differ."""
    torch.manual_seed(3)
    sizes = OmniMRIConfig.from_preset("debug", 300)
    dense = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=300,
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.moe_intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            num_key_value_heads=sizes.num_key_value_heads,
            rms_norm_eps=sizes.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
            tie_word_embeddings=tied,
            initializer_range=0.2,
        )
    ).eval()
    for name, parameter in dense.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    return dense


def _model(tied: bool, **sizes: int) -> OmniMRIForConditionalGeneration:
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", 300, tie_word_embeddings=tied, **sizes)).eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "experts", [{}, {"num_experts": 5, "num_experts_per_tok": 3}, {"num_experts": 1, "num_experts_per_tok": 1}], ids=str
)
def test_the_logits_of_text_are_those_of_the_dense_model(tied: bool, experts: dict[str, int]) -> None:
    dense, model = _dense(tied), _model(tied, **experts)
    upcycle(model, dense.state_dict().items())
    ids = torch.randint(10, 300, (2, 17))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    with torch.no_grad():
        ours, theirs = model(ids, mask).logits, dense(ids, attention_mask=mask).logits
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=1e-5, rtol=0)


def test_experts_are_equal_and_routers_are_not() -> None:
    """Experts diverge in training because the routers send them different tokens."""
    dense, model = _dense(True), _model(True)
    upcycle(model, dense.state_dict().items())
    mlp = model.backbone.layers[0].mlp
    assert torch.equal(mlp.experts.down_proj[0], mlp.experts.down_proj[3])
    assert mlp.gate.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.3)
    assert mlp.shared_expert_gate.weight.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda state: state.pop("model.layers.1.mlp.up_proj.weight"),
            "1 weights are missing, among them model.layers.1.mlp.up_proj",
        ),
        (lambda state: state.update({"model.layers.9.mlp.up_proj.weight": torch.ones(1)}), "unknown weight model.layers.9"),
        (
            lambda state: state.update({"model.norm.weight": torch.ones(5)}),
            r"model.norm.weight is \(5,\), this network needs \(32,\)",
        ),
    ],
    ids=["missing", "unknown", "other shape"],
)
def test_an_incomplete_checkpoint_is_rejected(change, fault: str) -> None:  # type: ignore[no-untyped-def]
    state: dict[str, Tensor] = dict(_dense(True).state_dict())
    change(state)
    with pytest.raises(ValueError, match=fault):
        upcycle(_model(True), state.items())
