"""Counted costs agree with closed forms, PyTorch's counter on real tensors, and the memory that autograd saves."""

from __future__ import annotations

import time
from unittest.mock import patch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from components.settings import load_settings
from kernels.dispatch import interpreted
from kernels.window_attention import operation
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.accounting import (
    SampleSize,
    count_frozen_parameters,
    count_parameters,
    estimate_costs,
    estimate_training_memory,
)
from model_core.adapters import add_adapters, is_adapted
from model_core.sequences import build_attention_mask, compute_positions, one_block_each

TEXT = 20


@pytest.mark.parametrize("preset", ["debug", "demo", "gpu8", "gpu24", "gpu48", "0.5b", "1.5b", "7b"])
def test_parameters_are_those_of_the_closed_form(preset: str) -> None:
    """H hidden size, V vocabulary, n layers, k numbers of the keys, E experts, width_e theirs, c channels of a Swin level."""
    config = OmniMRIConfig.from_preset(preset)
    H, V, n = config.hidden_size, config.vocab_size, config.num_hidden_layers
    k, E, width_e = config.num_key_value_heads * config.head_dim, config.num_experts, config.moe_intermediate_size
    codes, w = 1 + 2 * config.intensity_frequencies, config.vision_width
    swin = w * (4 * codes + 1) + w * (4 * w + 1) + w  # two convolutions of 2 x 2 pixels, mask token
    rows = (2 * config.vision_window[0] - 1) * (2 * config.vision_window[1] - 1) * (2 * config.vision_window[2] - 1)
    for level, (blocks, heads) in enumerate(zip(config.vision_depths, config.vision_heads, strict=True)):
        c = config.level_width(level)
        swin += blocks * (4 * c + (3 * c * c + 3 * c) + (c * c + c) + rows * heads + (8 * c * c + 5 * c)) + 2 * c
        swin += (8 * c + 8 * c * c) * (level + 1 < config.levels)  # merging
    width = config.level_width(config.connector_level)
    expected = {
        "Swin encoder": swin,
        "connector": width * H + H + H * H + H + 6 * config.position_frequencies * H,
        "token embedding": V * H,
        "attention": n * (H * H + H + 2 * (H * k + k) + H * H),
        "experts": n * E * 3 * H * width_e,
        "routers": n * E * H,
        "shared experts": n * (3 * H * width_e + H),
        "norms": (2 * n + 1) * H,
        "text head": 0 if config.tie_word_embeddings else V * H,
    }
    counted = {row.part: row for row in count_parameters(config)}
    assert {part: counted[part].total for part in expected} == expected
    assert counted["experts"].active == n * config.num_experts_per_tok * 3 * H * width_e
    if preset in ("debug", "demo"):
        real = OmniMRIForConditionalGeneration(config).num_parameters()
        assert sum(row.total for row in counted.values()) == real


@pytest.mark.parametrize(("preset", "depth"), [("7b", 1), ("0.5b", 32)])
def test_operations_are_those_of_the_closed_form(preset: str, depth: int) -> None:
    """256 x 256 pixels: windows of 8 fit every map. A multiply-add counts two."""
    config, started = OmniMRIConfig.from_preset(preset), time.monotonic()
    rows = estimate_costs(config, SampleSize(depth, 256, 256, 128))
    assert time.monotonic() - started < 30
    counted = {row.part: row.flops for row in rows}
    tokens, swin = depth * 64 * 64, 0
    codes, w = 1 + 2 * config.intensity_frequencies, config.vision_width
    swin += 2 * tokens * (4 * 4 * codes * w + 4 * w * w)
    for level, blocks in enumerate(config.vision_depths):
        c, N = config.level_width(level), min(depth, 8) * 64
        swin += blocks * 2 * tokens * (12 * c * c + 2 * N * c)
        swin += 2 * tokens // 4 * 8 * c * c * (level + 1 < config.levels)
        tokens //= 4
    assert counted["Swin encoder"] == swin
    H, n, k = config.hidden_size, config.num_hidden_layers, config.num_key_value_heads * config.head_dim
    L = 64 * max(depth // 4, 1) + 128
    width_e, E, K = config.moe_intermediate_size, config.num_experts, config.num_experts_per_tok
    layer = 2 * L * (2 * H * H + 2 * H * k + 2 * L * H + E * H + (K + 1) * 3 * H * width_e + H)
    assert counted["backbone"] == n * layer
    assert counted["text head"] == 2 * L * H * config.vocab_size


def _real(preset: str, side: int) -> tuple[OmniMRIForConditionalGeneration, torch.Tensor, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(preset))
    pixels, visual = torch.rand(1, 1, 1, side, side), model.image_tokens_for(1, side, side)
    is_image = torch.arange(visual + TEXT)[None] < visual
    valid, grids = torch.ones_like(is_image), one_block_each(model.config.image_grid(1, side, side), 1)
    mask = build_attention_mask(is_image, valid, torch.ones(1, dtype=torch.bool), grids)
    embeddings = torch.randn(1, visual + TEXT, model.config.hidden_size, requires_grad=True)
    return model, pixels, (embeddings, compute_positions(is_image, valid, grids), mask)


@pytest.mark.parametrize(("preset", "side"), [("debug", 32), ("debug", 48), ("demo", 96)])
def test_operations_are_those_of_pytorchs_counter(preset: str, side: int) -> None:
    """A CPU uses no custom operation: window attention and experts are plain products there."""
    model, pixels, sequence = _real(preset, side)
    counted = {row.part: row.flops for row in estimate_costs(model.config, SampleSize(1, side, side, TEXT), torch.float32)}
    runs = {"Swin encoder": lambda: model.vision(pixels), "backbone": lambda: model.backbone(*sequence)}
    for part, run in runs.items():
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            run()
        assert counter.get_total_flops() == counted[part], part


def _saved_bytes(model: torch.nn.Module, run) -> int:  # type: ignore[no-untyped-def]
    """Return the bytes that autograd saves."""
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = run()
    assert output is not None
    return sum(x.untyped_storage().nbytes() for pointer, x in saved.items() if pointer not in weights)


@pytest.mark.parametrize(("preset", "side"), [("debug", 64), ("demo", 96)])
def test_memory_of_the_encoder_is_what_autograd_saves(preset: str, side: int) -> None:
    """Within 5 %: on a CPU, statistics of the softmax are by window, with padding. Large windows keep no scores, as on a GPU."""
    model, pixels, _ = _real(preset, side)
    counted = {row.part: row.kept for row in estimate_costs(model.config, SampleSize(1, side, side, TEXT), torch.float32)}
    with patch.object(operation, "EAGER_TOKENS", 0):
        real = _saved_bytes(model, lambda: model.vision(pixels))
    assert counted["Swin encoder"] == pytest.approx(real, rel=0.05)


def test_memory_of_the_backbone_is_what_autograd_saves() -> None:
    """Within 5 %, experts in Triton's interpreter: attention of a CPU keeps its statistics and mask in other forms."""
    model, _, sequence = _real("debug", 32)
    counted = {row.part: row.kept for row in estimate_costs(model.config, SampleSize(1, 32, 32, TEXT), torch.float32)}
    with interpreted():
        real = _saved_bytes(model, lambda: model.backbone(*sequence))
    assert counted["backbone"] == pytest.approx(real, rel=0.05)


def test_the_memory_of_a_training_is_that_measured_on_a_gpu() -> None:
    """Stage 4 of profiles/single_gpu.yaml took 60.25 GiB on an H100 (benchmarks/results/training_single_gpu.csv)."""
    config = OmniMRIConfig.from_preset("0.5b", 32768)
    estimated = estimate_training_memory(config, SampleSize(1, 256, 256, 128), 32).total / 2**30
    assert 0.9 * 60.25 < estimated < 60.25


@pytest.mark.parametrize("gib", [8, 24, 48])
def test_the_profile_of_a_gpu_fits_its_memory(gib: int) -> None:
    """A sixth is left for the kernels' workspaces and for fragments."""
    settings = load_settings(f"gpu{gib}")
    config = OmniMRIConfig.from_preset(settings.model.preset, settings.model.vocabulary)
    side, micro_batch = settings.curation.matrix, settings.training.stage("instruction_tuning").micro_batch
    memory = estimate_training_memory(config, SampleSize(1, side, side, 128), micro_batch)
    assert settings.training.activation_checkpointing and settings.training.precision == "bfloat16"
    assert 0.5 * gib < memory.total / 2**30 < 5 / 6 * gib


@pytest.mark.parametrize(("profile", "gib"), [("gpu8", 6), ("gpu24", 12), ("gpu48", 24), ("single_gpu", 40)])
def test_with_its_optimizer_on_the_host_a_profile_fits_a_smaller_gpu(profile: str, gib: int) -> None:
    """Three float32 numbers a parameter move: the weight and both moments of AdamW."""
    settings = load_settings(profile)
    config = OmniMRIConfig.from_preset(settings.model.preset, settings.model.vocabulary)
    side, micro_batch = settings.curation.matrix, settings.training.stage("instruction_tuning").micro_batch
    sample = SampleSize(1, side, side, 128)
    whole, moved = (estimate_training_memory(config, sample, micro_batch, offload) for offload in (False, True))
    assert moved.total / 2**30 < 5 / 6 * gib
    assert whole.host == 0 and moved.host == 12 * sum(row.total for row in count_parameters(config))
    assert moved.total + moved.host == whole.total


@pytest.mark.parametrize(("profile", "gib"), [("gpu8", 5.0), ("gpu24", 14.5), ("gpu48", 26.9), ("single_gpu", 40.9)])
def test_moments_of_8_bits_take_two_thirds_of_the_states(profile: str, gib: float) -> None:
    """12 + 1/32 bytes of a parameter instead of 18: a byte for each moment, and 4 bytes for each 256 of them."""
    settings = load_settings(profile)
    config = OmniMRIConfig.from_preset(settings.model.preset, settings.model.vocabulary)
    side, micro_batch = settings.curation.matrix, settings.training.stage("instruction_tuning").micro_batch
    sample, trained = SampleSize(1, side, side, 128), sum(row.total for row in count_parameters(config))
    whole, small = (estimate_training_memory(config, sample, micro_batch, optimizer_bits=bits) for bits in (32, 8))
    assert small.total / 2**30 < gib
    assert whole.states == 18 * trained and small.states == pytest.approx((12 + 1 / 32) * trained, abs=1)
    assert small.total - small.states == whole.total - whole.states


@pytest.mark.parametrize("preset", ["debug", "gpu48", "0.5b", "7b"])
def test_parameters_of_adapters_are_those_of_the_closed_form(preset: str) -> None:
    """Letters as above. A matrix of m rows and n columns gets rank * (m + n) parameters; it is frozen, with its bias."""
    config, rank = OmniMRIConfig.from_preset(preset), 16
    H, n, E, width_e = config.hidden_size, config.num_hidden_layers, config.num_experts, config.moe_intermediate_size
    k = config.num_key_value_heads * config.head_dim
    plain, adapted = ({row.part: row for row in count_parameters(config, r)} for r in (0, rank))
    added = {part: adapted[part].total - row.total for part, row in plain.items()}
    expected = {
        "attention": n * rank * (2 * (H + H) + 2 * (H + k)),
        "experts": n * E * rank * ((H + 2 * width_e) + (width_e + H)),
        "shared experts": n * rank * 3 * (H + width_e),
    }
    assert added == dict.fromkeys(plain, 0) | expected
    gates = {"shared experts": n * H}
    frozen = {part: plain[part].total - gates.get(part, 0) for part in expected}
    assert count_frozen_parameters(config, rank) == dict.fromkeys(plain, 0) | frozen
    assert not any(count_frozen_parameters(config, 0).values())


def test_memory_of_adapters_is_what_autograd_saves() -> None:
    """Within 5 %: the sums of weights and adapters, and little else. Here they are in float32, and those of all layers are kept.

    In training, those of one layer are: as many bytes in bfloat16, as the gradients are there, too.
    """
    model, _, sequence = _real("debug", 32)
    before = _saved_bytes(model, lambda: model.backbone(*sequence))
    add_adapters(model.backbone, 1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_adapted(name))
    merged = estimate_training_memory(model.config, SampleSize(1, 32, 32, TEXT), 1, adapter_rank=1).merged_experts
    after = _saved_bytes(model, lambda: model.backbone(*sequence))
    assert after - before == pytest.approx(merged * model.config.num_hidden_layers, rel=0.05)


@pytest.mark.parametrize(("preset", "gib"), [("0.5b", 24), ("1.5b", 48)])
def test_with_adapters_a_backbone_fits_a_smaller_gpu(preset: str, gib: int) -> None:
    """As profiles/single_gpu.yaml, with Qwen2.5's vocabulary. Frozen weights take two bytes each, the others 18."""
    config = OmniMRIConfig.from_preset(preset)
    memory = estimate_training_memory(config, SampleSize(1, 256, 256, 128), 32, adapter_rank=16)
    frozen = sum(count_frozen_parameters(config, 16).values())
    assert memory.states == 18 * (sum(row.total for row in count_parameters(config, 16)) - frozen) + 2 * frozen
    assert memory.total / 2**30 < 5 / 6 * gib
