"""Exact upcycling of a dense Qwen2 to a mixture of experts: before any training, text has the logits of the dense model.

Every expert is the dense feed-forward with its down projection halved. The shared expert is the dense feed-forward, and its gate is
zero, which gives it the weight one half. The weights of the experts of a token sum to one, so both halves add up to the dense
output. Routers keep their random weights, otherwise all experts would stay equal (after Komatsuzaki et al., arXiv:2212.05055).

Shape letters: E experts, H hidden size, I width of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.modeling_omnimri import OmniMRIForConditionalGeneration


@dataclass(frozen=True)
class Destination:
    """A weight of the network, and the scale of the dense weight that is copied there. The first axis of experts comes first."""

    weight: Tensor
    scale: float = 1.0


@torch.no_grad()
def upcycle(model: OmniMRIForConditionalGeneration, dense: Iterable[tuple[str, Tensor]]) -> None:
    """Copy the weights of a dense model to the backbone and the text head.

    Args:
        dense: names and weights of a ``Qwen2ForCausalLM``, in any order; each is released before the next is requested.

    Raises:
        ValueError: a weight is unknown, has another shape, or is missing. The model is then invalid.
    """
    missing = _destinations(model)
    for name, weight in dense:
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # some checkpoints store it twice
        if name not in missing:
            raise ValueError(f"unknown weight {name}")
        for destination in missing.pop(name):
            target = destination.weight
            expected = target.shape[-weight.dim() :]
            if weight.shape != expected:
                raise ValueError(f"{name} is {tuple(weight.shape)}, this network needs {tuple(expected)}")
            target.copy_((weight.to(target.dtype) * destination.scale).expand_as(target))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, among them {min(missing)}")
    for layer in model.backbone.layers:
        layer.mlp.shared_expert_gate.weight.zero_()  # type: ignore[union-attr, operator]


def _destinations(model: OmniMRIForConditionalGeneration) -> dict[str, list[Destination]]:
    """Return name of a weight of ``Qwen2ForCausalLM`` -> the weights of the network to which it is copied."""
    backbone, width = model.backbone, model.config.moe_intermediate_size
    destinations = {
        "model.embed_tokens.weight": [Destination(backbone.embed_tokens.weight)],
        "model.norm.weight": [Destination(backbone.norm.weight)],
    }
    if not model.config.tie_word_embeddings:
        destinations["lm_head.weight"] = [Destination(model.lm_head.weight)]
    for index, layer in enumerate(backbone.layers):
        prefix, mlp = f"model.layers.{index}.", layer.mlp
        for name, weight in layer.named_parameters():
            if not name.startswith("mlp."):
                destinations[prefix + name] = [Destination(weight)]
        gate_EIH, up_EIH = mlp.experts.gate_up_proj.split(width, 1)  # type: ignore[union-attr, operator]
        destinations[f"{prefix}mlp.gate_proj.weight"] = [Destination(gate_EIH), Destination(mlp.shared_expert.gate_proj.weight)]  # type: ignore[union-attr, arg-type]
        destinations[f"{prefix}mlp.up_proj.weight"] = [Destination(up_EIH), Destination(mlp.shared_expert.up_proj.weight)]  # type: ignore[union-attr, arg-type]
        down = [Destination(mlp.experts.down_proj, 0.5), Destination(mlp.shared_expert.down_proj.weight)]  # type: ignore[union-attr, arg-type]
        destinations[f"{prefix}mlp.down_proj.weight"] = down
    return destinations
