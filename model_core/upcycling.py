"""From a dense Qwen2 to our mixture of experts, exactly: before any training, text has the logits of the dense model.

Every expert is the dense feed-forward with its down projection halved, the shared expert is the dense feed-forward, and its gate is
zero, so that it counts one half. The weights of a token's experts sum to one, whichever they are: half and half make the whole.
Routers keep the random weights that they have, or no two experts would ever differ (after Komatsuzaki et al., arXiv:2212.05055).

Shape letters: E experts, H hidden size, I width of the feed-forward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.modeling_omnimri import OmniMRIForConditionalGeneration


@dataclass(frozen=True)
class Place:
    """A part of our weights, and by how much a dense weight is scaled on its way there; experts first, where there are experts."""

    weight: Tensor
    scale: float = 1.0


@torch.no_grad()
def upcycle(model: OmniMRIForConditionalGeneration, dense: Iterable[tuple[str, Tensor]]) -> None:
    """Give the backbone and the text head the weights of a dense model.

    Args:
        dense: names and weights of a ``Qwen2ForCausalLM``, in any order; each is let go before the next is asked for.

    Raises:
        ValueError: a weight has no place here, does not fit, or is missing. The model is then of no use.
    """
    missing = _places(model)
    for name, weight in dense:
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue  # some checkpoints store it a second time
        if name not in missing:
            raise ValueError(f"no place for {name}")
        for place in missing.pop(name):
            wanted = place.weight.shape[-weight.dim() :]
            if weight.shape != wanted:
                raise ValueError(f"{name} is {tuple(weight.shape)}, this network needs {tuple(wanted)}")
            place.weight.copy_((weight.to(place.weight.dtype) * place.scale).expand_as(place.weight))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, among them {min(missing)}")
    for layer in model.backbone.layers:
        layer.mlp.shared_expert_gate.weight.zero_()  # type: ignore[union-attr, operator]


def _places(model: OmniMRIForConditionalGeneration) -> dict[str, list[Place]]:
    """Where each weight of a ``Qwen2ForCausalLM`` goes."""
    backbone, width = model.backbone, model.config.moe_intermediate_size
    places = {
        "model.embed_tokens.weight": [Place(backbone.embed_tokens.weight)],
        "model.norm.weight": [Place(backbone.norm.weight)],
    }
    if not model.config.tie_word_embeddings:
        places["lm_head.weight"] = [Place(model.lm_head.weight)]
    for index, layer in enumerate(backbone.layers):
        prefix, mlp = f"model.layers.{index}.", layer.mlp
        for name, weight in layer.named_parameters():
            if not name.startswith("mlp."):
                places[prefix + name] = [Place(weight)]
        gate_EIH, up_EIH = mlp.experts.gate_up_proj.split(width, 1)  # type: ignore[union-attr, operator]
        places[f"{prefix}mlp.gate_proj.weight"] = [Place(gate_EIH), Place(mlp.shared_expert.gate_proj.weight)]  # type: ignore[union-attr, arg-type]
        places[f"{prefix}mlp.up_proj.weight"] = [Place(up_EIH), Place(mlp.shared_expert.up_proj.weight)]  # type: ignore[union-attr, arg-type]
        down = [Place(mlp.experts.down_proj, 0.5), Place(mlp.shared_expert.down_proj.weight)]  # type: ignore[union-attr, arg-type]
        places[f"{prefix}mlp.down_proj.weight"] = down
    return places
