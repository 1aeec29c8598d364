"""Low-rank adapters change nothing before they are trained, and nothing of a network into which they are merged."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from kernels.dispatch import interpreted
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.adapters import SCALE, add_adapters, is_adapted, merge_adapters
from model_core.objectives import InstructionTuning

RANK = 3


def _network() -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug")).eval()


def _logits(model: OmniMRIForConditionalGeneration, use_cache: bool = False) -> torch.Tensor:
    logits: torch.Tensor = model(torch.arange(4, 44).view(2, -1), use_cache=use_cache).logits
    return logits.detach()


def _train(model: OmniMRIForConditionalGeneration) -> None:
    """Give both factors of every adapter values that matter."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("use_cache", [False, True])
def test_a_network_with_new_adapters_gives_the_same_bits(use_cache: bool) -> None:
    model = _network()
    expected = _logits(model, use_cache)
    add_adapters(model.backbone, RANK)
    assert torch.equal(_logits(model, use_cache), expected)


def test_a_merged_network_has_the_parameters_and_the_outputs_of_the_adapted_one() -> None:
    """Within roundings of float32; every adapted weight W becomes W + 2 B A."""
    model, plain = _network(), _network()
    names, before = {name for name, _ in plain.named_parameters()}, plain.state_dict()
    add_adapters(model.backbone, RANK)
    _train(model)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    merged = merge_adapters(model.config, RANK, weights)
    assert merged.keys() == names
    changed = {name for name in names if not torch.equal(merged[name], before[name])}
    assert changed == {name.replace(".base_layer", "") for name in weights if is_adapted(name) and not name.endswith("bias")}
    name, layer = "backbone.layers.1.self_attn.o_proj.weight", model.backbone.layers[1].self_attn.o_proj
    product = layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(merged[name], before[name] + SCALE * product)
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(_logits(plain), _logits(model), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(_logits(model), _logits(_network()), atol=0.1)


def test_an_objective_trains_adapters_and_freezes_what_they_stand_for() -> None:
    objective = InstructionTuning(_network())
    everything = {name for name, _ in objective.named_parameters() if name}
    expected = {id(parameter) for parameter in objective.trainable()}
    plain = {name for name, parameter in objective.named_parameters() if id(parameter) in expected}
    add_adapters(objective.model.backbone, RANK)
    trained = {id(parameter) for parameter in objective.trainable()}
    names = {name for name, parameter in objective.named_parameters() if id(parameter) in trained}
    factors = {name for name in names if ".lora_" in name}
    frozen = {name.replace(".base_layer", "") for name, _ in objective.named_parameters() if is_adapted(name)}
    assert names - factors == plain - frozen and plain - names == frozen and frozen < everything
    assert all("self_attn" in name or "experts." in name or "shared_expert." in name for name in frozen)
    assert {name.rpartition(".layers.0.")[2] for name in names if ".layers.0." in name and ".lora_" not in name} == {
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
    }


def test_the_kernels_give_adapters_the_gradients_of_the_specification() -> None:
    """As on a GPU, in Triton's interpreter; frozen weights get none."""
    gradients = []
    for context in (nullcontext(), interpreted()):
        model = _network()
        add_adapters(model.backbone, RANK)
        _train(model)
        InstructionTuning(model).trainable()
        with context:
            logits: torch.Tensor = model(torch.arange(4, 24).view(2, -1)).logits
            logits.square().mean().backward()
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if is_adapted(name))
        gradients.append({name: p.grad for name, p in model.named_parameters() if ".lora_" in name})
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)
