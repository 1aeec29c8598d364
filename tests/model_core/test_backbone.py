"""The backbone is Qwen2-MoE; text alone gives transformers' numbers, and images take three-axis positions."""

import torch
from transformers import Qwen2MoeModel

from model_core.backbone import Backbone, attention_mask, positions, qwen_config
from model_core.config import OmniMRIConfig


def test_text_gives_the_numbers_of_transformers() -> None:
    torch.manual_seed(0)
    config = OmniMRIConfig.from_preset("debug", 300)
    qwen = qwen_config(config)
    qwen.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
    theirs = Qwen2MoeModel(qwen).eval()
    ours = Backbone(config).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 300, (2, 11))
    text, valid = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    mask = attention_mask(text, valid, torch.ones(2, dtype=torch.bool), 4)
    hidden, _ = ours(ours.embed_tokens(ids), positions(text, valid, (1, 2, 2)), mask, valid)
    torch.testing.assert_close(hidden, theirs(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_an_image_spreads_over_its_grid_and_text_goes_on_past_it() -> None:
    is_image = torch.tensor([[False, True, True, True, True, True, True, False, False]])
    found = positions(is_image, torch.ones_like(is_image), (1, 2, 3))
    assert found[:, 0].tolist() == [[0, 1, 1, 1, 1, 1, 1, 4, 5], [0, 1, 1, 1, 2, 2, 2, 4, 5], [0, 1, 2, 3, 1, 2, 3, 4, 5]]


def test_padding_on_the_left_does_not_move_positions() -> None:
    is_image = torch.tensor([[False, False, False, True, True, False]])
    valid = torch.tensor([[False, False, True, True, True, True]])
    assert positions(is_image, valid, (1, 1, 2))[2, 0, 2:].tolist() == [0, 1, 2, 3]


def test_only_condition_images_are_seen_both_ways() -> None:
    is_image = torch.tensor([[False, True, True, False]] * 2)
    allowed = attention_mask(is_image, torch.ones_like(is_image), torch.tensor([True, False]), 2)[:, 0]
    assert allowed[0, 1, 2] and not allowed[1, 1, 2]
    assert not allowed[:, 0, 1].any() and not allowed[:, 2, 3].any() and allowed[:, 3].all()
