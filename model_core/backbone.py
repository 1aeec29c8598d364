"""Autoregressive transformer of interleaved text and image tokens: Qwen2-MoE's modules with three-axis rotary positions.

Shape letters: B samples, L tokens, S tokens in the cache and in the sequence, H hidden size, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Qwen2MoeConfig
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeAttention, Qwen2MoeRMSNorm

from kernels.moe_layer import MoEOutput
from model_core.config import OmniMRIConfig
from model_core.moe import SparseMoeBlock


@dataclass(frozen=True)
class RouterOutput:
    """Router losses, averaged over layers, and the number of tokens by layer and expert."""

    load_balance_loss: Tensor
    z_loss: Tensor
    counts_layers_E: Tensor


def build_qwen_config(config: OmniMRIConfig) -> Qwen2MoeConfig:
    """Return the configuration of the backbone as transformers' Qwen2-MoE configuration."""
    return Qwen2MoeConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        num_experts=config.num_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        moe_intermediate_size=config.moe_intermediate_size,
        shared_expert_intermediate_size=config.shared_expert_intermediate_size,
        norm_topk_prob=True,
        qkv_bias=True,
        rms_norm_eps=config.rms_norm_eps,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )


class DecoderLayer(GradientCheckpointingLayer):
    """Decoder layer of pre-norm attention and a sparse feed-forward block."""

    def __init__(self, config: Qwen2MoeConfig, index: int) -> None:
        super().__init__()
        self.self_attn = Qwen2MoeAttention(config, index)
        self.mlp = SparseMoeBlock(config)
        self.input_layernorm = Qwen2MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_BLH: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask_B1LS: Tensor,
        tokens_T: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[Tensor, MoEOutput | None]:
        """Return the hidden states after the layer and the output of the router, which is None with a cache (generation)."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_BLH), position_embeddings=rotary, attention_mask=mask_B1LS, past_key_values=past_key_values
        )
        hidden = hidden_BLH + attended
        update, routed = self.mlp(self.post_attention_layernorm(hidden), tokens_T, routed=past_key_values is None)
        return hidden + update, routed


class Backbone(nn.Module):
    """Token embedding, decoder layers, final norm."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        qwen = build_qwen_config(config)
        self.sections, self.theta, self.head_dim = config.rope_sections, config.rope_theta, config.head_dim
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(qwen, index) for index in range(config.num_hidden_layers))
        self.norm = Qwen2MoeRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        embeddings_BLH: Tensor,
        positions_3BL: Tensor,
        mask_B1LS: Tensor,
        tokens_T: Tensor | None = None,
        cache: Cache | None = None,
    ) -> tuple[Tensor, RouterOutput | None]:
        """Run the layers.

        Args:
            positions_3BL: slice, row and column position of every token (:func:`model_core.sequences.compute_positions`).
            mask_B1LS: bool, True = may attend (:func:`model_core.sequences.build_attention_mask`).
            tokens_T: numbers, of all B * L, of the tokens that feed-forward blocks compute; None = all. Nearly all arithmetic is
                theirs, and a third to a half of a batch of short texts is padding.

        Returns:
            Normalized hidden states (B, L, H), and the output of the routers, which is None with a cache (generation).
        """
        rotary = self._rotary(positions_3BL, embeddings_BLH.dtype)
        hidden, routed = embeddings_BLH, []
        for layer in self.layers:
            hidden, output = layer(hidden, rotary, mask_B1LS, tokens_T, past_key_values=cache)
            routed.append(output)
        if cache is not None:
            return self.norm(hidden), None
        return self.norm(hidden), RouterOutput(
            load_balance_loss=torch.stack([output.load_balance_loss for output in routed]).mean(),
            z_loss=torch.stack([output.z_loss for output in routed]).mean(),
            counts_layers_E=torch.stack([output.counts_E for output in routed]),
        )

    def _rotary(self, positions_3BL: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (B, L, head size). Each section of frequencies belongs to one axis (Qwen2-VL, arXiv:2409.12191).

        Frequencies are recomputed in float32 at every call: a buffer would be rounded when the module is cast to bfloat16.
        """
        half = self.head_dim // 2
        frequency = self.theta ** (-torch.arange(half, dtype=torch.float32, device=positions_3BL.device) / half)
        sections = zip(positions_3BL.float(), frequency.split(self.sections), strict=True)
        angles = [axis_BL[..., None] * section for axis_BL, section in sections]
        angle = torch.cat([*angles, *angles], -1)
        return angle.cos().to(dtype), angle.sin().to(dtype)
