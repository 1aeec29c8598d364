"""OmniMRI: Swin encoder, connector, mixture-of-experts backbone, text head, visual-token head and image decoder in one model.

Shape letters: B samples, D slices, H rows, W columns, L text and image tokens, V vocabulary, A answers, K draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationMixin, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts, Qwen2MoeTopKRouter
from transformers.utils import ModelOutput

from model_core.answer_grammar import AnswerGrammar
from model_core.backbone import Backbone, RouterOutput, build_attention_mask, compute_last_position, compute_positions
from model_core.config import OmniMRIConfig, Triple
from model_core.flow import Sampler
from model_core.heads.connector import Connector
from model_core.heads.image_decoder import Conditions, ImageDecoder
from model_core.heads.modulated import ZeroConv2d, ZeroLinear
from model_core.heads.visual_tokens import VisualTarget, VisualTokenHead
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.swin import SwinEncoder, WindowAttention


@dataclass
class OmniMRIOutput(ModelOutput):
    """Result of :meth:`OmniMRIForConditionalGeneration.forward`.

    Attributes:
        logits: (B, L, V), or (M, V) of the tokens in ``logits_of_BL``.
        hidden_states: (B, L, hidden size), normalized.
        past_key_values: cache, if requested.
        features: Swin features of the image, every level; None for a call without an image.
        backbone: router losses and load; None with a cache (generation).
    """

    logits: Tensor | None = None
    hidden_states: Tensor | None = None
    past_key_values: Cache | None = None
    features: list[Tensor] | None = None
    backbone: RouterOutput | None = None


class OmniMRIForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The network of the OmniMRI paper (section 3)."""

    config_class = OmniMRIConfig
    config: OmniMRIConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}  # noqa: RUF012 (protocol of transformers)
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer", "SwinBlock"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["visual_target"]  # noqa: RUF012 (prediction targets must not be rounded)
    supports_gradient_checkpointing = True

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__(config)
        self.vision = SwinEncoder(config)
        self.connector = Connector(config)
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.visual_target = VisualTarget(config)
        self.visual_head = VisualTokenHead(config)
        self.image_decoder = ImageDecoder(config)
        self.post_init()
        # A visual token has no meaning without pixels: never generate one.
        self.generation_config.suppress_tokens = [config.image_token_id]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear | ZeroConv2d):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, WindowAttention):
            nn.init.trunc_normal_(module.bias_table, std=0.02)
        elif isinstance(module, SwinEncoder):
            nn.init.trunc_normal_(module.mask_token, std=0.02)
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            module.reset_parameters()
        elif isinstance(module, Qwen2MoeExperts):
            nn.init.normal_(module.gate_up_proj, std=self.config.initializer_range)
            nn.init.normal_(module.down_proj, std=self.config.initializer_range)
        elif isinstance(module, Qwen2MoeTopKRouter):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.backbone.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """Return the text head."""
        return self.lm_head

    def image_tokens_for(self, depth: int, height: int, width: int) -> int:
        """Return the number of visual tokens of an image of (D, H, W) voxels."""
        grid = self.config.image_grid(depth, height, width)
        return math.prod(grid)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_loss_B: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        image_grid: Triple | None = None,
        logits_to_keep: int = 0,
        logits_of_BL: Tensor | None = None,
        **_: Any,
    ) -> OmniMRIOutput:
        """Compute hidden states and logits of interleaved sequences.

        Args:
            input_ids: (B, L) int64. With a filled cache only the tokens after it are computed.
            attention_mask: (B, L), 0 = padding (either side).
            pixel_values: (B, 1, D, H, W); required unless the cache contains the image.
            visual_loss_B: bool, samples whose image block must stay causal; None = no sample.
            image_grid: grid of the visual tokens; computed from ``pixel_values`` if these are given.
            logits_to_keep: number of last tokens whose logits are computed; 0 = all.
            logits_of_BL: bool, compute the logits of these tokens only, (M, V) in their order: training needs few of them, and the
                vocabulary is large.
        """
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        valid_BL = valid.bool()
        grid = self.config.image_grid(*pixel_values.shape[2:]) if pixel_values is not None else image_grid or (1, 1, 1)
        is_image = input_ids == self.config.image_token_id
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        embeddings = self.backbone.embed_tokens(input_ids[:, cached:])
        features = None
        if pixel_values is not None and cached == 0:
            features = self.vision(pixel_values)
            tokens = self.connector(features)
            embeddings = insert_visual_tokens(embeddings, is_image, tokens)
        if cached and cached + 1 == input_ids.shape[1]:  # a step of generation: the last token attends to all valid tokens
            positions, allowed = compute_last_position(is_image, valid_BL, grid), valid_BL[:, None, None]
        else:
            causal_only = torch.zeros(len(input_ids), dtype=torch.bool) if visual_loss_B is None else visual_loss_B
            bidirectional = ~causal_only.to(input_ids.device)
            positions = compute_positions(is_image, valid_BL, grid)[..., cached:]
            allowed = build_attention_mask(is_image, valid_BL, bidirectional, math.prod(grid))[:, :, cached:]
        hidden, routed = self.backbone(embeddings, positions, allowed, valid_BL[:, cached:], past_key_values)
        return OmniMRIOutput(
            logits=self.lm_head(hidden[:, -logits_to_keep:] if logits_of_BL is None else hidden[logits_of_BL]),
            hidden_states=hidden,
            past_key_values=past_key_values,
            features=features,
            backbone=routed,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`forward` for a step of ``generate``: the whole sequence (for positions) and the cache."""
        started = past_key_values is not None and past_key_values.get_seq_length() > 0
        grid = self.config.image_grid(*pixel_values.shape[2:]) if pixel_values is not None else None
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": None if started else pixel_values,
            "image_grid": grid,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
        }

    @torch.no_grad()
    def generate_text(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, max_new_tokens: int, streamer: Any = None
    ) -> Tensor:
        """Generate answers greedily within their grammar; return the new tokens only, (B, up to ``max_new_tokens``).

        Args:
            input_ids: padded on the left.
            streamer: transformers' streamer that receives every token when it is generated (batch of one only).
        """
        generated = self.generate(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([AnswerGrammar(self.config)]),
            streamer=streamer,
        )
        return generated[:, input_ids.shape[1] :]

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Tensor,
        kind_B: Tensor,
        measured: KSpaceMeasurement | None = None,
        seeds: Sequence[int] | None = None,
        steps: int = 1,
        sampler: Sampler = "euler",
        draws: int = 1,
    ) -> Tensor:
        """Generate the image or mask of the last ``<image>`` or ``<seg>`` token of each sequence.

        Args:
            input_ids: (B, L), instruction and response up to that token.
            kind_B: TARGET_IMAGE | TARGET_MASK.
            measured: k-space with which a reconstruction must be consistent; None = no measurement.
            seeds: one per sample, on which alone its noise depends; default 0, 1, ...
            steps, sampler: of a draw; one step returns the conditional mean.
            draws: number of draws; their standard deviation estimates the uncertainty.

        Returns:
            (K, B, 1, D, H, W) float32: magnitude images, or probabilities of the mask.
        """
        output = self(input_ids, attention_mask, pixel_values)
        assert output.hidden_states is not None and output.features is not None
        conditions = Conditions(
            pixel_values_B1DHW=pixel_values,
            features=output.features,
            query_BQ=self.query_states(input_ids, output.hidden_states),
            kind_B=kind_B,
            measured=measured or KSpaceMeasurement.empty(pixel_values),
        )
        return self.image_decoder.sample(conditions, range(len(input_ids)) if seeds is None else seeds, steps, sampler, draws)

    @torch.no_grad()
    def generate_image(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, kind_B: Tensor, **options: Any
    ) -> Tensor:
        """Return the mean of the draws of :meth:`generate_images`, (B, 1, D, H, W)."""
        return self.generate_images(input_ids, attention_mask, pixel_values, kind_B, **options).mean(0)

    def query_states(self, input_ids: Tensor, hidden_BLH: Tensor) -> Tensor:
        """Return the hidden state from which the image decoder answers each sequence, (B, hidden size).

        It is that of the last ``<image>`` or ``<seg>`` token, or without one that of the ``<response>`` token, which precedes the
        answer: a detection has its mask before its boxes are written. Text without instruction has that of its first token.
        """
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        is_marker = (input_ids == self.config.generate_image_token_id) | (input_ids == self.config.seg_token_id)
        rank = order + is_marker * len(order)
        index = torch.where(is_marker | (input_ids == self.config.response_token_id), rank, 0).max(-1).values % len(order)
        return hidden_BLH[torch.arange(len(hidden_BLH), device=hidden_BLH.device), index]

    @torch.no_grad()
    def answer_probability(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, answers: list[list[int]]
    ) -> Tensor:
        """Return the mean probability of the tokens of each answer after each prompt, (B, A). Prompts are padded on the left."""
        scores = []
        for answer in answers:
            tokens = torch.tensor(answer, device=input_ids.device).expand(len(input_ids), -1)
            ids = torch.cat([input_ids, tokens], -1)
            mask = torch.cat([attention_mask, torch.ones_like(tokens)], -1)
            logits = self(ids, mask, pixel_values).logits
            assert logits is not None
            probabilities = logits[:, -len(answer) - 1 : -1].float().softmax(-1)
            scores.append(probabilities.gather(-1, tokens[..., None]).squeeze(-1).mean(-1))
        return torch.stack(scores, -1)

    @torch.no_grad()
    def fit_visual_target(self, pixel_values: Tensor) -> None:
        """Fit the whitening of the visual tokens on training images (B, 1, D, H, W); the encoder must be pretrained."""
        self.visual_target.fit(self.vision(pixel_values))


def insert_visual_tokens(embeddings_BLH: Tensor, is_image_BL: Tensor, tokens_BNH: Tensor) -> Tensor:
    """Replace the embeddings of the image tokens by the visual tokens.

    Raises:
        ValueError: the number of image tokens of a sequence is not the number of visual tokens of the image.
    """
    counts = is_image_BL.sum(-1)
    if not bool((counts == tokens_BNH.shape[1]).all()):
        needed = tokens_BNH.shape[1]
        raise ValueError(f"every sequence needs exactly one image of {needed} tokens; found {counts.tolist()} image tokens")
    return embeddings_BLH.masked_scatter(is_image_BL[..., None], tokens_BNH.to(embeddings_BLH.dtype))


AutoConfig.register(OmniMRIConfig.model_type, OmniMRIConfig)
AutoModelForImageTextToText.register(OmniMRIConfig, OmniMRIForConditionalGeneration)
