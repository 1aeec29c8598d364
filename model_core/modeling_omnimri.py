"""OmniMRI: Swin encoder, connector, mixture-of-experts backbone, text head, visual-token head and image decoder in one model.

Shape letters: B samples, D slices, H rows, W columns, L text and image tokens, V vocabulary, A answers, K draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeExperts, Qwen2MoeTopKRouter
from transformers.utils import ModelOutput

from model_core.backbone import Backbone, RouterOutput, attention_mask, position_of_last, positions
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
        logits: (B, L, V), or (M, V) of the tokens that were asked for.
        hidden_states: (B, L, hidden size), normalised.
        past_key_values: cache, where one was asked for.
        features: Swin features of the image, every level; None in a step that brings no image.
        backbone: router losses and load; None with a cache, where nobody learns.
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
    _tied_weights_keys = {"lm_head.weight": "backbone.embed_tokens.weight"}  # noqa: RUF012 (transformers' own protocol)
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer", "SwinBlock"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = ["visual_target"]  # noqa: RUF012 (what is predicted must not be rounded)
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
        # A visual token has no meaning without pixels: it is never an answer.
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
        """Token embedding."""
        return self.backbone.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.backbone.embed_tokens = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        """Text head."""
        return self.lm_head

    def image_tokens_for(self, depth: int, height: int, width: int) -> int:
        """Visual tokens of an image of (D, H, W) voxels."""
        grid = self.config.image_grid(depth, height, width)
        return grid[0] * grid[1] * grid[2]

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
        """Hidden states and logits of interleaved sequences.

        Args:
            input_ids: (B, L) int64. With a filled cache only its last token is computed.
            attention_mask: (B, L), 0 = padding (either side).
            pixel_values: (B, 1, D, H, W); needed unless the cache holds the image already.
            visual_loss_B: bool, samples whose image block must stay causal; None = none.
            image_grid: grid of the visual tokens; taken from ``pixel_values`` where those are given.
            logits_to_keep: logits of so many last tokens only; 0 = of all.
            logits_of_BL: bool, logits of these tokens only, (M, V) in their order: training asks for few, of a large vocabulary.
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
            embeddings = place_images(embeddings, is_image, tokens)
        if cached and cached + 1 == input_ids.shape[1]:  # a step of a generation: the last token sees all that is valid
            where, allowed = position_of_last(is_image, valid_BL, grid), valid_BL[:, None, None]
        else:
            causal_only = torch.zeros(len(input_ids), dtype=torch.bool) if visual_loss_B is None else visual_loss_B
            where = positions(is_image, valid_BL, grid)[..., cached:]
            allowed = attention_mask_of(is_image, valid_BL, ~causal_only.to(input_ids.device), grid)[:, :, cached:]
        hidden, routed = self.backbone(embeddings, where, allowed, valid_BL[:, cached:], past_key_values)
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
        """What :meth:`forward` needs at a step of ``generate``: the whole sequence, from which positions follow, and the cache."""
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
        """Greedy answer, new tokens only, (B, up to ``max_new_tokens``). ``input_ids`` are padded on the left. A transformers
        ``streamer`` is given every token when it is made (a batch of one)."""
        generated = self.generate(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            max_new_tokens=max_new_tokens,
            do_sample=False,
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
        """Images or masks that the last ``<image>`` or ``<seg>`` token of each sequence stands for.

        Args:
            input_ids: (B, L), instruction and response up to that token.
            kind_B: TARGET_IMAGE | TARGET_MASK.
            measured: k-space that a reconstruction has to agree with.
            seeds: one of each sample (its noise depends on nothing else); 0, 1, ... where not given.
            steps, sampler: of a draw; one step is the conditional mean. draws: how many; their deviation is the uncertainty.

        Returns:
            (K, B, 1, D, H, W) float32: magnitude images, or probabilities of the mask.
        """
        output = self(input_ids, attention_mask, pixel_values)
        assert output.hidden_states is not None and output.features is not None
        given = Conditions(
            pixel_values_B1DHW=pixel_values,
            features=output.features,
            query_BQ=self.query_states(input_ids, output.hidden_states),
            kind_B=kind_B,
            measured=measured or KSpaceMeasurement.empty(pixel_values),
        )
        return self.image_decoder.sample(given, range(len(input_ids)) if seeds is None else seeds, steps, sampler, draws)

    @torch.no_grad()
    def generate_image(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, kind_B: Tensor, **how: Any) -> Tensor:
        """Mean of the draws of :meth:`generate_images`, (B, 1, D, H, W)."""
        return self.generate_images(input_ids, attention_mask, pixel_values, kind_B, **how).mean(0)

    def query_states(self, input_ids: Tensor, hidden_BLH: Tensor) -> Tensor:
        """Hidden state of the last ``<image>`` or ``<seg>`` token (of the first token where there is none), (B, hidden size)."""
        stands = (input_ids == self.config.generate_image_token_id) | (input_ids == self.config.seg_token_id)
        place = torch.where(stands, torch.arange(input_ids.shape[1], device=input_ids.device), 0).max(-1).values
        return hidden_BLH[torch.arange(len(hidden_BLH), device=hidden_BLH.device), place]

    @torch.no_grad()
    def answer_probability(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, answers: list[list[int]]
    ) -> Tensor:
        """Score of each answer after each prompt: the mean probability of its tokens, (B, A). Prompts are padded on the left."""
        scores = []
        for answer in answers:
            tokens = torch.tensor(answer, device=input_ids.device).expand(len(input_ids), -1)
            ids = torch.cat([input_ids, tokens], -1)
            mask = torch.cat([attention_mask, torch.ones_like(tokens)], -1)
            logits = self(ids, mask, pixel_values).logits
            assert logits is not None
            before = logits[:, -len(answer) - 1 : -1].float().softmax(-1)
            scores.append(before.gather(-1, tokens[..., None]).squeeze(-1).mean(-1))
        return torch.stack(scores, -1)

    @torch.no_grad()
    def fit_visual_target(self, pixel_values: Tensor) -> None:
        """Fit the whitening of the visual tokens on training images (B, 1, D, H, W), when the encoder has been pretrained."""
        self.visual_target.fit(self.vision(pixel_values))


def attention_mask_of(is_image_BL: Tensor, valid_BL: Tensor, bidirectional_B: Tensor, grid: Triple) -> Tensor:
    """:func:`~model_core.backbone.attention_mask` for an image grid."""
    return attention_mask(is_image_BL, valid_BL, bidirectional_B, grid[0] * grid[1] * grid[2])


def place_images(embeddings_BLH: Tensor, is_image_BL: Tensor, tokens_BNH: Tensor) -> Tensor:
    """Visual tokens in the places that stand for them.

    Raises:
        ValueError: a sequence has another number of places than the image has tokens.
    """
    counts = is_image_BL.sum(-1)
    if not bool((counts == tokens_BNH.shape[1]).all()):
        raise ValueError(f"every sequence needs exactly one image of {tokens_BNH.shape[1]} tokens; found {counts.tolist()} places")
    return embeddings_BLH.masked_scatter(is_image_BL[..., None], tokens_BNH.to(embeddings_BLH.dtype))


AutoConfig.register(OmniMRIConfig.model_type, OmniMRIConfig)
AutoModelForImageTextToText.register(OmniMRIConfig, OmniMRIForConditionalGeneration)
