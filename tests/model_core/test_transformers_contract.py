"""The network follows the protocols of transformers: saving, auto classes, checkpointing, compilation, generation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.heads.image_decoder import Conditions
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.processing import Processor
from model_core.sequences import compute_positions, one_block_each
from model_core.targets import TARGET_IMAGE, TARGET_MASK
from model_core.tokenization import special_ids, train_tokenizer

SIZE = 32


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(train_tokenizer(["Is there a lesion in this image? yes, lesion. no, no lesion."], 300))


@pytest.fixture
def model(processor: Processor) -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    return OmniMRIForConditionalGeneration(config).eval()


def _prompts(model: OmniMRIForConditionalGeneration, processor: Processor) -> tuple[Tensor, Tensor, Tensor]:
    """Return two prompts of different lengths, the shorter padded on the left, their mask, and their images."""
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    questions = ["lesion?", "Is there a lesion in this image?"]
    ids, mask = processor.pad([processor.encode(question, None, tokens).input_ids for question in questions], left=True)
    return ids, mask, torch.rand(2, 1, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_shards_are_safetensors_and_are_loaded_bit_for_bit(model: OmniMRIForConditionalGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    suffixes = {path.suffix for path in tmp_path.iterdir()}
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and suffixes == {".safetensors", ".json"}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is OmniMRIForConditionalGeneration
    assert type(AutoConfig.from_pretrained(tmp_path)) is OmniMRIConfig
    assert again.lm_head.weight is again.backbone.embed_tokens.weight
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_half_precision_keeps_the_visual_target_in_float32(processor: Processor, tmp_path: Path) -> None:
    """Weights have the standard deviation of the large presets: large weights would amplify rounding."""
    torch.manual_seed(0)
    sizes = {"initializer_range": 0.02, **special_ids(processor.tokenizer)}
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **sizes)).eval()
    model.save_pretrained(tmp_path)
    half = OmniMRIForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in half.visual_target.buffers()} == {torch.float32}
    inputs = _prompts(model, processor)
    with torch.no_grad():
        exact, rounded = model(*inputs).logits, half(*inputs).logits
    assert (rounded.float() - exact).std() < 0.02 * exact.std()
    assert half.generate_text(*inputs, max_new_tokens=4).shape == (2, 4)


def test_checkpointing_reduces_memory_and_keeps_the_gradients(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Swin blocks, decoder layers and the blocks of the image decoder are computed twice; only their inputs are saved."""
    inputs = _prompts(model, processor)
    pixels, kind = inputs[2], torch.tensor([TARGET_IMAGE, TARGET_MASK])
    for parameter in model.image_decoder.parameters():
        if not parameter.any():  # zero weights would block the gradients of the layers before them
            torch.nn.init.normal_(parameter, std=0.05)

    def gradients() -> tuple[Tensor, dict[str, Tensor], int]:
        saved: dict[int, int] = {}
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.__setitem__(x.data_ptr(), x.nbytes), x)[1], lambda x: x):
            output = model(*inputs)
            query = model.query_states(inputs[0], output.hidden_states)
            decoded, _ = model.image_decoder(
                pixels, torch.ones(2), Conditions(pixels, output.features, query, kind, KSpaceMeasurement.empty(pixels))
            )
            router = output.backbone.load_balance_loss + output.backbone.z_loss
            loss = output.logits.square().mean() + decoded.square().mean() + router
        loss.backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        return loss.detach(), grads, sum(saved.values())

    model.train()
    loss, expected, memory = gradients()
    model.activation_checkpointing_enable()
    assert model.is_activation_checkpointing
    checkpointed_loss, actual, checkpointed_memory = gradients()
    assert torch.equal(checkpointed_loss, loss) and actual.keys() == expected.keys() and checkpointed_memory < 0.7 * memory
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=0, rtol=0, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_backbone_is_one_graph(model: OmniMRIForConditionalGeneration, dtype: torch.dtype) -> None:
    """The graph has no break: no count is read by the host, no loop depends on data; router losses and gradients included."""
    backbone = model.backbone.to(dtype)
    is_image = torch.zeros(2, 7, dtype=torch.bool)
    embeddings = torch.randn(2, 7, model.config.hidden_size, dtype=dtype)
    positions = compute_positions(is_image, ~is_image, one_block_each((1, 1, 1), 2))
    arguments = positions, torch.ones(2, 1, 7, 7).tril().bool(), torch.arange(12)  # the last two are padding
    results = []
    for call in (backbone, torch.compile(backbone, fullgraph=True, backend="aot_eager")):
        backbone.zero_grad()
        hidden, routed = call(embeddings, *arguments)
        (hidden.float().square().mean() + routed.load_balance_loss + routed.z_loss).backward()
        results.append([hidden.detach(), *(parameter.grad.clone() for parameter in backbone.layers.parameters())])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, atol=tolerance * float(eager.abs().max()), rtol=tolerance)


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"do_sample": False, "num_beams": 3}, {"do_sample": True, "top_k": 20}],
    ids=["greedy", "beams", "sampled"],
)
def test_the_cache_changes_no_token(
    model: OmniMRIForConditionalGeneration, processor: Processor, options: dict[str, object]
) -> None:
    """transformers' ``generate`` on left-padded prompts with images gives the same tokens with and without the cache."""
    ids, mask, pixels = _prompts(model, processor)
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        answers.append(
            model.generate(ids, attention_mask=mask, pixel_values=pixels, max_new_tokens=8, use_cache=use_cache, **options)
        )
    assert torch.equal(*answers) and answers[0].shape[1] > ids.shape[1]


def test_a_visual_token_is_never_generated(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Not even if it is by far the most probable token: it would represent an image that does not exist."""
    ids, mask, pixels = _prompts(model, processor)
    token = model.config.image_token_id
    with torch.no_grad():  # the text head is tied to the embedding, and the last norm's output may have any sign
        model.backbone.embed_tokens.weight[token] = 100 * model(ids, mask, pixels).hidden_states[:, -1].mean(0)
    assert (model(ids, mask, pixels).logits[:, -1].argmax(-1) == token).all()
    assert not (model.generate_text(ids, mask, pixels, max_new_tokens=3) == token).any()
