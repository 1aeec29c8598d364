"""The whole network in the debug preset."""

import copy
from pathlib import Path

import pytest
import torch

from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.answer_grammar import AnswerGrammar
from model_core.config import PRESETS
from model_core.flow import SAMPLERS, Sampler, sample_noise
from model_core.heads import image_decoder
from model_core.heads.image_decoder import Conditions
from model_core.mri_physics.fourier import fft2c
from model_core.mri_physics.sense import PRIOR_WEIGHT, KSpaceMeasurement
from model_core.processing import Processor, Series
from model_core.targets import TARGET_IMAGE, TARGET_MASK
from model_core.tokenization import special_ids, train_tokenizer

SIZE = 32


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(train_tokenizer(["Is there a lesion in this image? yes, lesion. no, no lesion."], 300))


@pytest.fixture(scope="module")
def model(processor: Processor) -> OmniMRIForConditionalGeneration:
    torch.manual_seed(0)
    config = OmniMRIConfig.from_preset("debug", len(processor.tokenizer), **special_ids(processor.tokenizer))
    model = OmniMRIForConditionalGeneration(config).eval()
    for parameter in model.image_decoder.output.parameters():  # initialized with zeros: use non-zero weights
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def _prompts(
    model: OmniMRIForConditionalGeneration, processor: Processor, questions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    return processor.pad([processor.encode(question, None, tokens).input_ids for question in questions], left=True)


def test_a_saved_model_is_loaded_bit_for_bit(model: OmniMRIForConditionalGeneration, processor: Processor, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = OmniMRIForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    ids, mask = _prompts(model, processor, ["Is there a lesion?"])
    pixels = torch.rand(1, 1, 1, SIZE, SIZE)
    loaded = copy.deepcopy(loaded)  # memory of a mapped file has another alignment, which changes the last bit of matrix products
    assert torch.equal(model(ids, mask, pixels).logits, loaded(ids, mask, pixels).logits)


def test_the_cache_does_not_change_generation(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """Greedy generation with the cache gives the tokens of passes over the whole sequence, for prompts of different lengths."""
    torch.manual_seed(1)
    ids, mask = _prompts(model, processor, ["lesion?", "Is there a lesion in this image?"])
    pixels = torch.rand(2, 1, 1, SIZE, SIZE)
    generated = model.generate_text(ids, mask, pixels, max_new_tokens=6)
    for _ in range(generated.shape[1]):
        scores = model(ids, mask, pixels).logits[:, -1].index_fill(-1, torch.tensor([model.config.image_token_id]), -torch.inf)
        following = AnswerGrammar(model.config)(ids, scores).argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, following], -1), torch.cat([mask, torch.ones_like(following)], -1)
    ended = (generated == model.config.eos_token_id).cumsum(-1) > 0
    assert torch.equal(generated.masked_fill(ended, 0), ids[:, -generated.shape[1] :].masked_fill(ended, 0))


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_a_volume_of_few_slices_has_as_many_tokens_as_its_grid_says(model: OmniMRIForConditionalGeneration, depth: int) -> None:
    """Also with fewer slices than one token pools."""
    tokens = model.connector(model.vision(torch.rand(1, 1, depth, SIZE, SIZE)))
    assert tokens.shape[1] == model.image_tokens_for(depth, SIZE, SIZE)


def test_a_volume_uses_the_same_weights_as_a_slice(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    tokens = model.image_tokens_for(6, SIZE, SIZE)
    assert tokens == 2 * model.image_tokens_for(1, SIZE, SIZE)
    ids, mask = processor.pad([processor.encode("Segment", "<seg>", tokens).input_ids])
    masks = model.generate_image(ids, mask, torch.rand(1, 1, 6, SIZE, SIZE), torch.tensor([TARGET_MASK]), steps=2)
    assert masks.shape == (1, 1, 6, SIZE, SIZE)
    assert ((masks >= 0) & (masks <= 1)).all()


@pytest.mark.parametrize("kind", [TARGET_IMAGE, TARGET_MASK])
def test_slices_decoded_in_chunks_are_those_of_the_whole_volume(
    model: OmniMRIForConditionalGeneration, processor: Processor, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    ids, mask = processor.pad([processor.encode("Segment", "<seg>", model.image_tokens_for(7, SIZE, SIZE)).input_ids])
    volume = torch.rand(1, 1, 7, SIZE, SIZE)
    measured = KSpaceMeasurement(fft2c(volume.to(torch.complex64)), torch.rand(1, 7, SIZE, SIZE) > 0.5)
    arguments = (ids, mask, volume, torch.tensor([kind]))
    whole = model.generate_images(*arguments, measured=measured, steps=2, draws=2)
    monkeypatch.setattr(image_decoder, "DECODED_VOXELS", 3 * SIZE * SIZE)
    torch.testing.assert_close(model.generate_images(*arguments, measured=measured, steps=2, draws=2), whole, atol=1e-5, rtol=1e-4)


def test_the_decoded_image_of_a_study_is_the_one_asked_for(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """A mask is on the grid of its series, and depends on that series' own pixels, whatever shape the others have."""
    torch.manual_seed(0)
    images = [torch.rand(1, 3, SIZE, SIZE), torch.rand(1, 2, SIZE, 2 * SIZE)]
    series = [Series(model.config.image_grid(*image.shape[1:]), line) for image, line in zip(images, ("lesion", ""), strict=True)]
    packed = processor.pack([processor.encode_study("Segment", "<seg>", series)])

    def decode(index: int, images: list[torch.Tensor]) -> torch.Tensor:
        return model.generate_images(
            packed.input_ids_BL,
            packed.attention_mask_BL,
            images,
            torch.tensor([TARGET_MASK]),
            grids_BG3=packed.grids_BG3,
            image_B=torch.tensor([index]),
        )

    assert [decode(index, images).shape[3:] for index in range(2)] == [image.shape[1:] for image in images]
    changed = [images[0], images[1].flip(-1)]
    own, other = ((decode(index, changed) - decode(index, images)).abs().max() for index in (1, 0))
    assert own > 1e-3 > other


def test_a_reconstruction_keeps_the_measurement(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """With fully sampled k-space the result is the measured image, independent of the network."""
    torch.manual_seed(0)
    image = torch.rand(1, 1, SIZE, SIZE)
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    ids, mask = processor.pad([processor.encode_answer_prefix("Reconstruct", "<image>", tokens)])
    kspace = fft2c(image.to(torch.complex64))
    fully_sampled = KSpaceMeasurement(kspace[:, None], torch.ones_like(image, dtype=torch.bool))
    image_B1DHW = model.generate_image(ids, mask, image[:, None], torch.tensor([TARGET_IMAGE]), measured=fully_sampled)
    torch.testing.assert_close(image_B1DHW[:, 0], image, atol=1e-5, rtol=1e-5)


def test_a_more_probable_answer_scores_higher(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """The score is the mean probability of the answer's tokens, by the model's own logits."""
    ids, mask = _prompts(model, processor, ["Is there a lesion?"])
    pixels = torch.rand(1, 1, 1, SIZE, SIZE)
    logits = model(ids, mask, pixels).logits[0, -1].softmax(-1)
    best, worst = int(logits.argmax()), int(logits.argmin())
    scores = model.answer_probability(ids, mask, pixels, [[best], [worst]])
    torch.testing.assert_close(scores[0], torch.stack([logits[best], logits[worst]]), atol=1e-5, rtol=1e-4)


def test_a_wrong_number_of_image_tokens_is_rejected(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    ids, mask = processor.pad([processor.encode("Is there?", None, 3).input_ids])
    with pytest.raises(ValueError, match=r"\[16\] visual tokens"):
        model(ids, mask, torch.rand(1, 1, 1, SIZE, SIZE))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name[0].isdigit()])
def test_the_large_presets_have_qwens_shapes(preset: str) -> None:
    """Windows of 8 divide a 256 x 256 slice at every level, which has 64 visual tokens."""
    config = OmniMRIConfig.from_preset(preset, 151936)
    assert config.image_grid(1, 256, 256) == (1, 8, 8)
    assert config.image_grid(32, 256, 256) == (8, 8, 8)


def _draw_masks(
    model: OmniMRIForConditionalGeneration, processor: Processor, pixels: torch.Tensor, **options: object
) -> torch.Tensor:
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    ids, mask = processor.pad([processor.encode_answer_prefix("Segment", "<seg>", tokens)] * len(pixels))
    return model.generate_images(ids, mask, pixels, torch.full((len(pixels),), TARGET_MASK), **options)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_depends_on_its_seed_alone(model: OmniMRIForConditionalGeneration, processor: Processor, sampler: Sampler) -> None:
    """The same seed gives the same bits; other samples, another index and fewer draws change rounding at most."""
    pixels = torch.rand(3, 1, 1, SIZE, SIZE)
    first = _draw_masks(model, processor, pixels, seeds=[5, 6, 7], steps=3, sampler=sampler, draws=2)
    assert torch.equal(first, _draw_masks(model, processor, pixels, seeds=[5, 6, 7], steps=3, sampler=sampler, draws=2))
    single = _draw_masks(model, processor, pixels[2:], seeds=[7], steps=3, sampler=sampler)
    torch.testing.assert_close(single[:, 0], first[:1, 2], atol=1e-5, rtol=1e-4)
    assert (first[0] - first[1]).abs().max() > 1e-3


def test_one_euler_step_is_the_prediction_at_pure_noise(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """The conditional mean of a mask is the sigmoid of the decoder's output at t = 1, where no noise is seen."""
    pixels = torch.rand(2, 1, 1, SIZE, SIZE)
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    ids, mask = processor.pad([processor.encode_answer_prefix("Segment", "<seg>", tokens)] * 2)
    output = model(ids, mask, pixels)
    kind = torch.full((2,), TARGET_MASK)
    conditions = Conditions(
        pixels, output.features, model.query_states(ids, output.hidden_states), kind, KSpaceMeasurement.empty(pixels)
    )
    predicted = model.image_decoder(sample_noise([0, 1], pixels.shape[1:])[0], torch.ones(2), conditions)[0].sigmoid()
    torch.testing.assert_close(model.generate_image(ids, mask, pixels, kind), predicted, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.image_decoder(torch.zeros_like(pixels), torch.ones(2), conditions)[0].sigmoid(), predicted)


def test_a_reconstruction_uses_coils_and_their_maps(model: OmniMRIForConditionalGeneration, processor: Processor) -> None:
    """With k-space fully sampled by three coils the result is the measured image up to the weight of the network's."""
    torch.manual_seed(0)
    image = torch.rand(1, 1, SIZE, SIZE) + 0.5
    maps = torch.randn(1, 3, 1, SIZE, SIZE, dtype=torch.complex64)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    sampling = torch.ones(1, 1, SIZE, SIZE, dtype=torch.bool)
    kspace = KSpaceMeasurement(torch.empty(0), sampling, maps).encode(image.to(torch.complex64))
    tokens = model.image_tokens_for(1, SIZE, SIZE)
    ids, mask = processor.pad([processor.encode_answer_prefix("Reconstruct", "<image>", tokens)])
    for sampler in SAMPLERS:
        image_B1DHW = model.generate_image(
            ids,
            mask,
            0.5 * image[:, None],
            torch.tensor([TARGET_IMAGE]),
            measured=KSpaceMeasurement(kspace, sampling, maps),
            steps=2,
            sampler=sampler,
        )
        torch.testing.assert_close(image_B1DHW[:, 0], image, atol=PRIOR_WEIGHT, rtol=PRIOR_WEIGHT)
