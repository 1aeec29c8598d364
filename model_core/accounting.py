"""Cost of the network per sample: parameters, floating-point operations and activation memory, counted on tensors without data.

The modules are run on PyTorch's "meta" device, where operations compute shapes only. The count covers FLOPs (a multiply-add is two)
and the tensors that autograd saves for the backward pass. Operations of ``kernels`` and attention (its memory-efficient form) count
as on a GPU. Loss, optimizer and weights are not part of the activations.

Shape letters: B samples, D slices, H rows, W columns, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.modeling_layers import GradientCheckpointingLayer

from kernels.window_attention.geometry import Triple, fit_window, padded_grid
from model_core.adapters import add_adapters, is_adapted
from model_core.config import OmniMRIConfig
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration
from model_core.targets import TARGET_MASK

PARTS = {
    "Swin encoder": ("vision.",),
    "connector": ("connector.",),
    "token embedding": ("backbone.embed_tokens.",),
    "attention": (".self_attn.",),
    "experts": (".mlp.experts.",),
    "routers": (".mlp.gate.",),
    "shared experts": (".mlp.shared_expert",),
    "norms": ("layernorm.", "backbone.norm."),
    "text head": ("lm_head.",),
    "visual-token head": ("visual_head.",),
    "image decoder": ("image_decoder.",),
}
"""Module -> patterns in the names of its parameters; the first match counts. Tied weights belong to the embedding."""


@dataclass(frozen=True)
class ParameterCount:
    """Number of parameters of a module; ``active`` excludes the experts to which a token is not routed."""

    part: str
    total: int
    active: int


@dataclass(frozen=True)
class Cost:
    """Cost of one module on one sample.

    Attributes:
        flops: FLOPs of a forward pass; training takes three times as many, four times with checkpointing.
        kept: bytes that autograd saves for the backward pass.
        checkpointed: peak bytes with activation checkpointing: inputs of all layers, and the activations of one recomputed layer.
    """

    part: str
    flops: int
    kept: int
    checkpointed: int


@dataclass(frozen=True)
class SampleSize:
    """Size of a sample: a number of images of (D, H, W) voxels, and of text tokens. Costs of the encoder are those of one image."""

    depth: int
    height: int
    width: int
    text: int
    images: int = 1


def build_meta_model(
    config: OmniMRIConfig, dtype: torch.dtype = torch.float32, adapter_rank: int = 0
) -> OmniMRIForConditionalGeneration:
    """Build the network on the meta device, with adapters on its backbone if they have a rank."""
    with torch.device("meta"):
        model = OmniMRIForConditionalGeneration(config)
        if adapter_rank:
            add_adapters(model.backbone, adapter_rank)
    return model.to(dtype)  # type: ignore[arg-type]


def count_parameters(config: OmniMRIConfig, adapter_rank: int = 0) -> list[ParameterCount]:
    """Count the parameters by module, with those of adapters, in the order of :data:`PARTS`."""
    share = {"experts": config.num_experts_per_tok / config.num_experts}
    totals = _count_by_part(config, adapter_rank, lambda name: True)
    return [ParameterCount(part, total, round(total * share.get(part, 1))) for part, total in totals.items()]


def count_frozen_parameters(config: OmniMRIConfig, adapter_rank: int) -> dict[str, int]:
    """Return module -> number of its parameters that have adapters and are therefore not trained."""
    return _count_by_part(config, adapter_rank, is_adapted)


def _count_by_part(config: OmniMRIConfig, adapter_rank: int, counts: Callable[[str], bool]) -> dict[str, int]:
    totals = dict.fromkeys(PARTS, 0)
    for name, parameter in build_meta_model(config, adapter_rank=adapter_rank).named_parameters():
        part = next(part for part, keys in PARTS.items() if any(key in name for key in keys))
        totals[part] += parameter.numel() if counts(name) else 0
    return totals


def estimate_costs(config: OmniMRIConfig, sample: SampleSize, dtype: torch.dtype = torch.bfloat16) -> list[Cost]:
    """Count FLOPs and activation memory of one sample, by module.

    Heads are evaluated once: the visual-token head on all visual tokens, the image decoder on the whole image (one step).
    """
    model = build_meta_model(config, dtype)
    model.config._attn_implementation = _ATTENTION
    for layer in model.backbone.layers:
        layer.self_attn.config._attn_implementation = _ATTENTION  # type: ignore[union-attr]
    with torch.device("meta"):
        pixels = torch.empty(1, 1, sample.depth, sample.height, sample.width, dtype=dtype)
        grid = config.image_grid(sample.depth, sample.height, sample.width)
        visual = grid[0] * grid[1] * grid[2]
        length = sample.images * visual + sample.text
        embeddings = torch.empty(1, length, config.hidden_size, dtype=dtype, requires_grad=True)
        positions = torch.empty(3, 1, length, dtype=torch.long)
        mask = torch.empty(1, 1, length, length, dtype=torch.bool)
        noisy = torch.empty(visual, config.visual_target_size)
        query, kind = torch.empty(1, config.hidden_size, dtype=dtype), torch.full((1,), TARGET_MASK)
        time = torch.empty(1)
    counter = _CostCounter(model)
    features = counter.run("Swin encoder", lambda: model.vision(pixels))
    counter.run("connector", lambda: model.connector(features))
    hidden, _ = counter.run("backbone", lambda: model.backbone(embeddings, positions, mask))
    counter.run("text head", lambda: model.lm_head(hidden))
    position_features = model.visual_head.position_features(grid, torch.device("meta"))
    counter.run("visual-token head", lambda: model.visual_head(noisy, noisy[:, 0], hidden[0, :visual], position_features))
    # The fields of Conditions that forward() reads; k-space is used when an image is sampled only.
    conditions = SimpleNamespace(pixel_values_B1DHW=pixels, features=features, query_BQ=query, kind_B=kind)
    counter.run("image decoder", lambda: model.image_decoder(pixels, time, conditions))
    return counter.costs


WEIGHT_BYTES = 2
"""Bytes of a frozen parameter in bfloat16."""
MOMENT_BYTES = {32: 4 + 4, 8: 2 * (1 + 4 / 256)}
"""Bits of a moment of AdamW -> bytes of both for a parameter; of 8 bits, 256 numbers share a scale in float32."""
STATE_BYTES = 2 + 2 + 4 + 4 + 4
"""Bytes of a parameter under DeepSpeed in bfloat16: weight, gradient, float32 weight and both moments of AdamW (of 32 bits)."""
OPTIMIZER_BYTES = 4 + 4 + 4
"""Bytes of :data:`STATE_BYTES` that are in the memory of the host where the optimizer is."""
GRADIENT_BYTES = 2
"""Bytes of a parameter for the copy of its gradient that ZeRO's partition holds."""
MAX_BUCKET = 500_000_000
"""DeepSpeed's communication buckets hold at most so many numbers."""


@dataclass(frozen=True)
class TrainingMemory:
    """Memory of a training step on one GPU, in bytes.

    Attributes:
        states: weights, gradients and optimizer state, as far as it is on the GPU; of frozen parameters, weights alone.
        buckets: both communication buckets of DeepSpeed.
        activations: of a micro-batch, with activation checkpointing.
        host: optimizer state in the memory of the host.
        merged_experts: weights of a layer's experts with their adapters added, and their gradients.
    """

    states: int
    buckets: int
    activations: int
    host: int = 0
    merged_experts: int = 0

    @property
    def total(self) -> int:
        """Sum of all on the GPU."""
        return self.states + self.buckets + self.activations + self.merged_experts


def estimate_training_memory(
    config: OmniMRIConfig,
    sample: SampleSize,
    micro_batch: int,
    offload_optimizer: bool = False,
    adapter_rank: int = 0,
    optimizer_bits: Literal[32, 8] = 32,
) -> TrainingMemory:
    """Estimate the memory of stage 4 on one GPU: bfloat16, ZeRO stage 1 on one process, activation checkpointing.

    Kernels' workspaces and fragments of the allocator are not counted: an H100 needed 4 % more (docs/model.md). Nor are the
    activations of adapters, ``adapter_rank`` numbers for each token and projection.
    """
    frozen = count_frozen_parameters(config, adapter_rank)
    trained = sum(row.total for row in count_parameters(config, adapter_rank)) - sum(frozen.values())
    kept = sum(cost.checkpointed for cost in estimate_costs(config, sample))
    host = trained * OPTIMIZER_BYTES if offload_optimizer else 0
    saved = round(trained * (MOMENT_BYTES[32] - MOMENT_BYTES[optimizer_bits]))
    states = trained * (STATE_BYTES + GRADIENT_BYTES) + sum(frozen.values()) * WEIGHT_BYTES - host - saved
    merged = frozen["experts"] // config.num_hidden_layers * (WEIGHT_BYTES + GRADIENT_BYTES)
    return TrainingMemory(states, 2 * 2 * min(trained, MAX_BUCKET), kept * micro_batch, host, merged)


@dataclass
class _CostCounter:
    """Run modules and record FLOPs and saved tensors. A storage counts once; weights do not count."""

    model: nn.Module
    costs: list[Cost] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: dict[int, Tensor] = {_storage(x): x for x in (*self.model.parameters(), *self.model.buffers())}
        self._active_layers: list[int] = []

    def run(self, part: str, call: Callable[[], Any]) -> Any:
        """Run the call, append its cost to the list, and return its result."""
        self._outside, self._inputs, self._layers = 0, 0, [0]
        flop_counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
        with self._track_layers(), flop_counter, torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x):
            result = call()
        kept = self._outside + sum(self._layers)
        peak = self._outside + self._inputs + max(self._layers)
        self.costs.append(Cost(part, flop_counter.get_total_flops(), kept, min(peak, kept)))
        return result

    def _keep(self, x: Tensor) -> Tensor:
        if _storage(x) not in self._seen:
            self._seen[_storage(x)] = x
            size = x.untyped_storage().nbytes()
            if self._active_layers:
                self._layers[self._active_layers[-1]] += size
            else:
                self._outside += size
        return x

    @contextmanager
    def _track_layers(self) -> Iterator[None]:
        """Within this context, attribute the tensors that a layer with checkpointing saves to that layer."""

        def enter(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inputs += inputs[0].nbytes
            self._layers.append(0)
            self._active_layers.append(len(self._layers) - 1)

        def leave(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._active_layers.pop()

        handles: list[RemovableHandle] = []
        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


_ATTENTION = "memory_efficient_on_meta"


def _memory_efficient_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Run the attention that ``sdpa`` selects on a GPU with a mask; on the meta device it would select one that saves scores."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    bias = torch.zeros_like(attention_mask, dtype=query.dtype).expand(-1, query.shape[1], -1, -1)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, bias, True, scale=scaling)[0].transpose(1, 2).contiguous(), None


AttentionInterface.register(_ATTENTION, _memory_efficient_attention)


def _window_attention_flops(qkv: Any, table: Any, pad: Any, window: list[int], shift: list[int], *_: Any, **__: Any) -> int:
    """Count scores and weighted sums of every window, padding included."""
    batch, *grid, _, heads, head_dim = qkv
    size: Triple = (grid[0], grid[1], grid[2])
    used, _ = fit_window(size, (window[0], window[1], window[2]), (shift[0], shift[1], shift[2]))
    padded = padded_grid(size, used)
    tokens, window_tokens = padded[0] * padded[1] * padded[2], used[0] * used[1] * used[2]
    return int(2 * 2 * batch * tokens * window_tokens * heads * head_dim)


def _route_flops(hidden: Any, router: Any, *_: Any, **__: Any) -> int:
    return int(2 * hidden[0] * hidden[1] * router[0])


def _experts_flops(hidden: Any, weights: Any, gate_up: Any, down: Any, *_: Any, **__: Any) -> int:
    """Count three products for every pair of token and expert."""
    rows = weights[0] * weights[1]
    return int(2 * rows * (gate_up[1] * gate_up[2] + down[1] * down[2]))


FORMULAS = {
    torch.ops.omnimri.window_attention: _window_attention_flops,
    torch.ops.omnimri.moe_route: _route_flops,
    torch.ops.omnimri.moe_experts: _experts_flops,
}
"""FLOPs of the operations that PyTorch's counter does not know, computed from the shapes of their arguments."""
