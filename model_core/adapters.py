"""Low-rank adapters on the backbone (LoRA; Hu et al., arXiv:2106.09685), by the library ``peft``.

A weight W of the attention's projections and of the experts is frozen and counts as W + 2 B A. The factors, A with ``rank`` rows
and B with as many columns, are trained; B starts at zero, so that adapters change nothing at first. Every routed expert has factors
of its own: the experts of an upcycled network are copies, and nothing else would let them differ. The library is imported only
where adapters are added or merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model_core.backbone import Backbone
from model_core.config import OmniMRIConfig

if TYPE_CHECKING:
    from peft import LoraConfig

PROJECTIONS = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.shared_expert\.(gate|up|down)_proj)"
"""Names of the linear modules of the backbone that get adapters, a regular expression; their biases are frozen, too."""
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
"""Ends of the names of the parameters, (experts, output, input), that get adapters."""
SCALE = 2
"""Factor of B A, the same for every rank."""
PREFIX = "backbone."
"""Start of the names of the backbone's parameters in the network."""


def add_adapters(backbone: Backbone, rank: int) -> None:
    """Add adapters of a rank to a backbone, in place. A is drawn from PyTorch's generator."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(_lora_config(rank), backbone)


def is_adapted(name: str) -> bool:
    """Return whether a parameter with this name has an adapter, or is the bias of a module that has one."""
    parts = name.split(".")
    return "base_layer" in parts and not any(part.startswith("lora_") for part in parts)


def merge_adapters(config: OmniMRIConfig, rank: int, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters of a network without adapters that computes the same.

    Args:
        config: Of the network.
        rank: Of the adapters.
        weights: Name -> parameter of the network with adapters. Adapted weights are changed in place, to save memory.

    Returns:
        Name -> parameter.
    """
    from peft.tuners.lora import LoraModel

    with torch.device("meta"):
        adapted = LoraModel(Backbone(config), _lora_config(rank), "default")
    own = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    adapted.model.load_state_dict(own, assign=True)
    merged = {PREFIX + name: parameter.detach() for name, parameter in adapted.merge_and_unload().named_parameters()}
    return {name: tensor for name, tensor in weights.items() if not name.startswith(PREFIX)} | merged


def _lora_config(rank: int) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules=PROJECTIONS, target_parameters=list(EXPERTS))
