"""Generation on a CPU: text, compared with transformers' Qwen2-MoE of the same sizes and weights, and images of the decoder.

python -m benchmarks.generation
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2MoeForCausalLM

from benchmarks.harness import Measurement, measure, write
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.backbone import build_qwen_config
from model_core.targets import TARGET_MASK

PROMPT, NEW, SIDE = 160, 64, 96
FIRST_TEXT_ID = 10


def _model(preset: str) -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    return OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(preset)).eval()


def _transformers(ours: OmniMRIForConditionalGeneration, experts: str) -> Qwen2MoeForCausalLM:
    """Build transformers' model with the weights of the backbone; ``experts`` selects its implementation of the experts."""
    config = build_qwen_config(ours.config)
    config.rope_parameters = {"rope_type": "default", "rope_theta": ours.config.rope_theta}
    config._experts_implementation = experts
    theirs = Qwen2MoeForCausalLM(config).eval()
    theirs.model.load_state_dict(ours.backbone.state_dict())
    theirs.lm_head.load_state_dict(ours.lm_head.state_dict())
    return theirs


def _generation(model: Any, ids: Tensor, pixel_values: Tensor | None = None) -> Callable[[], Any]:
    """Return a call that generates exactly :data:`NEW` tokens greedily, with a cache."""
    images: dict[str, Any] = {} if pixel_values is None else {"pixel_values": pixel_values}

    def call() -> Any:
        settings: dict[str, Any] = {"min_new_tokens": NEW, "max_new_tokens": NEW, "do_sample": False, "suppress_tokens": None}
        return model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=2, **settings, **images)

    return call


@torch.no_grad()
def _assert_same(models: list[Any], ids: Tensor) -> None:
    """Assert that all implementations compute the same logits. Tokens are not compared: rounding breaks ties of random weights."""
    first, *others = (model(ids, attention_mask=torch.ones_like(ids)).logits for model in models)
    for logits in others:
        torch.testing.assert_close(logits, first, atol=1e-4, rtol=1e-4)


def text(preset: str, batch: int) -> list[Measurement]:
    """Measure the generation of tokens after a text prompt, and after a prompt of the same length that contains an image."""
    ours = _model(preset)
    ids = torch.randint(FIRST_TEXT_ID, ours.config.vocab_size, (batch, PROMPT))
    with_image = ids.clone()
    with_image[:, 1 : 1 + ours.image_tokens_for(1, SIDE, SIDE)] = ours.config.image_token_id
    models: dict[str, Any] = {
        f"transformers, {name}": _transformers(ours, experts)
        for name, experts in (("eager experts", "eager"), ("batched experts", "batched_mm"), ("grouped experts", "grouped_mm"))
    } | {"ours": ours}
    _assert_same(list(models.values()), ids)
    peers = {name: _generation(model, ids) for name, model in models.items()}
    peers["ours, image in the prompt"] = _generation(ours, with_image, torch.rand(batch, 1, 1, SIDE, SIDE))
    case = f"{preset}, batch {batch}: {batch * NEW} tokens after {PROMPT}"
    return measure(case, "text", peers, "cpu", repeats=9)


def images(preset: str) -> list[Measurement]:
    """Measure the generation of single images of :data:`SIDE` squared pixels, prompt included."""
    ours = _model(preset)
    tokens = ours.image_tokens_for(1, SIDE, SIDE)
    ids = torch.full((1, tokens + 16), FIRST_TEXT_ID)
    ids[:, 1 : 1 + tokens] = ours.config.image_token_id
    ids[:, -1] = ours.config.seg_token_id
    pixels, kind = torch.rand(1, 1, 1, SIDE, SIDE), torch.tensor([TARGET_MASK])

    def peer(steps: int) -> Callable[[], Tensor]:
        return lambda: ours.generate_image(ids, torch.ones_like(ids), pixels, kind, steps=steps)

    peers = {f"{steps} step{'s' * (steps > 1)}": peer(steps) for steps in (1, 4)}
    return measure(f"{preset}: one {SIDE} x {SIDE} image", "image", peers, "cpu")


def main() -> None:
    """Run the measurements and write the results."""
    rows = [row for preset in ("debug", "demo") for batch in (1, 8) for row in text(preset, batch)]
    rows += [row for preset in ("debug", "demo") for row in images(preset)]
    write("generation_cpu", rows)


if __name__ == "__main__":
    main()
