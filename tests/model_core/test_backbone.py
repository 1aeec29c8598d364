"""The backbone is Qwen2-MoE: text has the hidden states of transformers' model, images have three-axis positions."""

import pytest
import torch
from transformers import Qwen2MoeForCausalLM, Qwen2MoeModel
from transformers.models.qwen2_moe.modeling_qwen2_moe import apply_rotary_pos_emb
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding

from model_core import OmniMRIForConditionalGeneration
from model_core.backbone import Backbone, build_qwen_config
from model_core.config import OmniMRIConfig
from model_core.sequences import build_attention_mask, compute_positions, one_block_each


def test_text_has_the_hidden_states_of_transformers() -> None:
    torch.manual_seed(0)
    config = OmniMRIConfig.from_preset("debug", 300)
    qwen = build_qwen_config(config)
    qwen.rope_parameters = {"rope_type": "default", "rope_theta": config.rope_theta}
    theirs = Qwen2MoeModel(qwen).eval()
    ours = Backbone(config).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(0, 300, (2, 11))
    text, valid = torch.zeros_like(ids, dtype=torch.bool), torch.ones_like(ids, dtype=torch.bool)
    grids = one_block_each((1, 2, 2), 2)
    mask = build_attention_mask(text, valid, torch.ones(2, dtype=torch.bool), grids)
    hidden, _ = ours(ours.embed_tokens(ids), compute_positions(text, valid, grids), mask)
    torch.testing.assert_close(hidden, theirs(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_logits_are_those_of_transformers_with_padding_on_either_side(left: bool) -> None:
    torch.manual_seed(0)
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset("debug", 300)).eval()
    qwen = build_qwen_config(model.config)
    qwen.rope_parameters = {"rope_type": "default", "rope_theta": model.config.rope_theta}
    theirs = Qwen2MoeForCausalLM(qwen).eval()
    theirs.model.load_state_dict(model.backbone.state_dict())
    theirs.lm_head.load_state_dict(model.lm_head.state_dict())
    ids, mask = torch.randint(10, 300, (3, 13)), torch.ones(3, 13, dtype=torch.long)
    for row, padding in enumerate((0, 2, 5)):
        mask[row, : padding if left else 0] = 0
        mask[row, 13 if left else 13 - padding :] = 0
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=position_ids).logits[mask.bool()]
        torch.testing.assert_close(model(ids, mask).logits[mask.bool()], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("preset", ["debug", "demo", "0.5b", "7b"])
def test_rotary_positions_are_those_of_qwen2_vl(preset: str) -> None:
    """An image between texts: sections of the three axes and their order."""
    config = OmniMRIConfig.from_preset(preset)
    is_image = torch.zeros(1, 20, dtype=torch.bool)
    is_image[:, 3:15] = True
    positions_3BL = compute_positions(is_image, torch.ones_like(is_image), one_block_each((2, 2, 3), 1))
    with torch.device("meta"):
        backbone = Backbone(config)
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads": config.num_attention_heads}
    rotary = {"rope_type": "default", "rope_theta": config.rope_theta, "mrope_section": list(config.rope_sections)}
    theirs = Qwen2VLRotaryEmbedding(Qwen2VLTextConfig(**sizes, rope_parameters=rotary))
    query, key = torch.randn(2, 1, config.num_attention_heads, 20, config.head_dim)
    rotated = apply_rotary_pos_emb(query, key, *backbone._rotary(positions_3BL, torch.float32))
    expected = apply_rotary_pos_emb(query, key, *theirs(query, positions_3BL))
    torch.testing.assert_close(rotated, expected, atol=1e-5, rtol=1e-5)
