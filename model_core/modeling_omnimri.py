"""OmniMRI: Swin encoder, connector, mixture-of-experts backbone, text head, visual-token head and image decoder in one model.

Shape letters: B samples, M images of all samples, G image blocks of a sequence, D slices, H rows, W columns, L text and image
tokens, N visual tokens, V vocabulary, A answers, K draws.
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

from model_core.answer_grammar import AnswerGrammar, Beginnings
from model_core.backbone import Backbone, RouterOutput
from model_core.config import OmniMRIConfig
from model_core.flow import Sampler
from model_core.heads.connector import Connector
from model_core.heads.image_decoder import Conditions, ImageDecoder
from model_core.heads.modulated import ZeroConv2d, ZeroLinear
from model_core.heads.structures import embed_names
from model_core.heads.visual_tokens import VisualTarget, VisualTokenHead
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.sequences import (
    build_attention_mask,
    compute_last_position,
    compute_positions,
    one_block_each,
    place_visual_tokens,
)
from model_core.swin import SwinEncoder, WindowAttention
from model_core.targets import TARGET_MASK

Images = Tensor | Sequence[Tensor]
"""Images in the order of the sequences and of their blocks: (M, 1, D, H, W), or M tensors (1, D, H, W) of any shapes."""


@dataclass
class OmniMRIOutput(ModelOutput):
    """Result of :meth:`OmniMRIForConditionalGeneration.forward`.

    Attributes:
        logits: (B, L, V), or (M, V) of the tokens in ``logits_of_BL``.
        hidden_states: (B, L, hidden size), normalized.
        past_key_values: cache, if requested.
        features: Swin features of the images, every level, if these are one tensor; None for a call without images.
        features_by_image: Swin features of every image, (1, D, H, W, c) by level, if the images differ in shape; else None.
        backbone: router losses and load, outside of training with padding; None with a cache (generation).
    """

    logits: Tensor | None = None
    hidden_states: Tensor | None = None
    past_key_values: Cache | None = None
    features: list[Tensor] | None = None
    features_by_image: list[list[Tensor]] | None = None
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

    def grids_of(self, images: Images) -> Tensor:
        """Return the grids (M, 1, 3) of the visual tokens of images that are the only ones of their sequences."""
        if isinstance(images, Tensor):
            return one_block_each(self.config.image_grid(*images.shape[2:]), len(images), images.device)
        return torch.tensor([[self.config.image_grid(*image.shape[1:])] for image in images], device=images[0].device)

    def encode_images(self, images: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return the Swin features of each image, every level, (1, D, H, W, c); images of equal shape are encoded together."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(tuple(image.shape), []).append(index)
        features: dict[int, list[Tensor]] = {}
        for indices in by_shape.values():
            levels = self._encode(torch.stack([images[index] for index in indices]))
            features |= {index: [level[row : row + 1] for level in levels] for row, index in enumerate(indices)}
        return [features[index] for index in range(len(images))]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Images | None = None,
        visual_loss_B: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        grids_BG3: Tensor | None = None,
        logits_to_keep: int = 0,
        logits_of_BL: Tensor | None = None,
        features_by_image: Sequence[list[Tensor]] | None = None,
        **_: Any,
    ) -> OmniMRIOutput:
        """Compute hidden states and logits of interleaved sequences.

        Args:
            input_ids: (B, L) int64. With a filled cache only the tokens after it are computed.
            attention_mask: (B, L), 0 = padding (either side).
            pixel_values: the images of all sequences; required unless the cache contains them.
            visual_loss_B: bool, samples whose image blocks must stay causal; None = no sample.
            grids_BG3: grids of the image blocks of each sequence, zeros after the last one; None = one image each.
            logits_to_keep: number of last tokens whose logits are computed; 0 = all.
            logits_of_BL: bool, compute the logits of these tokens only, (M, V) in their order: training needs few of them, and the
                vocabulary is large.
            features_by_image: :meth:`encode_images` of these images: several questions about them share one pass of the encoder.
        """
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        valid_BL = valid.bool()
        # Before the encoder, when a GPU has little to finish while the host waits for the number of tokens.
        tokens_T = valid_BL.flatten().nonzero().squeeze(-1) if self.training and past_key_values is None else None
        if grids_BG3 is None:
            no_image = torch.zeros(len(input_ids), 1, 3, dtype=torch.long, device=input_ids.device)
            grids_BG3 = no_image if pixel_values is None else self.grids_of(pixel_values)
        is_image = input_ids == self.config.image_token_id
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        embeddings = self.backbone.embed_tokens(input_ids[:, cached:])
        output = OmniMRIOutput(past_key_values=past_key_values)
        if pixel_values is not None and cached == 0:
            tokens = self._visual_tokens(pixel_values, output, features_by_image)
            embeddings = place_visual_tokens(embeddings, is_image, tokens, grids_BG3)
        if cached and cached + 1 == input_ids.shape[1]:  # a step of generation: the last token attends to all valid tokens
            positions, allowed = compute_last_position(is_image, valid_BL, grids_BG3), valid_BL[:, None, None]
        else:
            causal_only = torch.zeros(len(input_ids), dtype=torch.bool) if visual_loss_B is None else visual_loss_B
            bidirectional = ~causal_only.to(input_ids.device)
            positions = compute_positions(is_image, valid_BL, grids_BG3)[..., cached:]
            allowed = build_attention_mask(is_image, valid_BL, bidirectional, grids_BG3)[:, :, cached:]
        hidden, output.backbone = self.backbone(embeddings, positions, allowed, tokens_T, past_key_values)
        output.logits = self.lm_head(hidden[:, -logits_to_keep:] if logits_of_BL is None else hidden[logits_of_BL])
        output.hidden_states = hidden
        return output

    def _encode(self, pixel_values_M1DHW: Tensor) -> list[Tensor]:
        """Return the Swin features of images of one shape, every level; without gradients, large volumes in slabs."""
        if torch.is_grad_enabled():
            return list(self.vision(pixel_values_M1DHW))
        return self.vision.encode_in_slabs(pixel_values_M1DHW)

    def _visual_tokens(self, images: Images, output: OmniMRIOutput, encoded: Sequence[list[Tensor]] | None) -> Tensor:
        """Return the visual tokens of all images, (N, hidden size), and keep the features in ``output``."""
        if isinstance(images, Tensor):
            output.features = self._encode(images)
            return self.connector(output.features).flatten(0, 1)
        output.features_by_image = list(self.encode_images(images) if encoded is None else encoded)
        return torch.cat([self.connector(features)[0] for features in output.features_by_image])

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Images | None = None,
        grids_BG3: Tensor | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        features_by_image: Sequence[list[Tensor]] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Return the arguments of :meth:`forward` for a step of ``generate``: the whole sequence (for positions) and the cache."""
        started = past_key_values is not None and past_key_values.get_seq_length() > 0
        if grids_BG3 is None and pixel_values is not None:
            grids_BG3 = self.grids_of(pixel_values)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "pixel_values": None if started else pixel_values,
            "grids_BG3": grids_BG3,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "features_by_image": None if started else features_by_image,
        }

    def _expand_inputs_for_generation(self, expand_size: int = 1, **model_kwargs: Any) -> Any:  # type: ignore[override]
        """Repeat every sequence, with all of its images, for beams and samples (as Qwen2-VL does)."""
        images, grids_BG3 = model_kwargs.pop("pixel_values", None), model_kwargs.get("grids_BG3")
        expand: Any = super()._expand_inputs_for_generation  # type: ignore[misc]
        ids, expanded = expand(expand_size=expand_size, **model_kwargs)
        if images is not None:
            count = [1] * len(images) if grids_BG3 is None else (grids_BG3.prod(-1) > 0).sum(-1).tolist()
            first = [sum(count[:row]) for row in range(len(count))]
            order = [f + i for f, n in zip(first, count, strict=True) for _ in range(expand_size) for i in range(n)]
            expanded["pixel_values"] = images[order] if isinstance(images, Tensor) else [images[index] for index in order]
        return ids, expanded

    @torch.no_grad()
    def generate_text(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Images,
        max_new_tokens: int,
        streamer: Any = None,
        grids_BG3: Tensor | None = None,
        features_by_image: Sequence[list[Tensor]] | None = None,
        beginnings: Sequence[Beginnings] = (),
    ) -> Tensor:
        """Generate answers greedily within their grammar; return the new tokens only, (B, up to ``max_new_tokens``).

        Args:
            input_ids: padded on the left.
            streamer: transformers' streamer that receives every token when it is generated (batch of one only).
            grids_BG3, features_by_image: of :meth:`forward`.
            beginnings: of :class:`AnswerGrammar`.
        """
        generated = self.generate(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            grids_BG3=grids_BG3,
            features_by_image=features_by_image,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            logits_processor=LogitsProcessorList([AnswerGrammar(self.config, _axes(pixel_values), beginnings)]),
            streamer=streamer,
        )
        return generated[:, input_ids.shape[1] :]

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Images,
        kind_B: Tensor,
        measured: KSpaceMeasurement | None = None,
        seeds: Sequence[int] | None = None,
        steps: int = 1,
        sampler: Sampler = "euler",
        draws: int = 1,
        grids_BG3: Tensor | None = None,
        image_B: Tensor | None = None,
        features_by_image: Sequence[list[Tensor]] | None = None,
    ) -> Tensor:
        """Generate the image or mask of the last ``<image>`` or ``<seg>`` token of each sequence.

        Args:
            input_ids: (B, L), instruction and response up to that token.
            kind_B: TARGET_IMAGE | TARGET_MASK.
            measured: k-space with which a reconstruction must be consistent; None = no measurement.
            seeds: one per sample, on which alone its noise depends; default 0, 1, ...
            steps, sampler: of a draw; one step returns the conditional mean.
            draws: number of draws; their standard deviation estimates the uncertainty.
            grids_BG3, features_by_image: of :meth:`forward`.
            image_B: index in ``pixel_values`` of the image that each answer belongs to; None = one image each.

        Returns:
            (K, B, 1, D, H, W) float32: magnitude images, or probabilities of the mask.
        """
        conditions = self._conditions(
            input_ids, attention_mask, pixel_values, kind_B, measured, grids_BG3, image_B, features_by_image
        )
        return self.image_decoder.sample(conditions, range(len(input_ids)) if seeds is None else seeds, steps, sampler, draws)

    @torch.no_grad()
    def generate_image(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, kind_B: Tensor, **options: Any
    ) -> Tensor:
        """Return the mean of the draws of :meth:`generate_images`, (B, 1, D, H, W)."""
        return self.generate_images(input_ids, attention_mask, pixel_values, kind_B, **options).mean(0)

    @torch.no_grad()
    def show_structures(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Images,
        names_SL: Tensor,
        grids_BG3: Tensor | None = None,
        image_B: Tensor | None = None,
        features_by_image: Sequence[list[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the mask that is asked for, and every named structure.

        The mask is the probability of a pixel, (B, D, H, W); structures are logits relative to "none of them", (B, S, D, H, W).

        One step of the image decoder at t = 1, where it sees no noise, gives the features of the pixels.

        Args:
            input_ids: (B, L), an instruction that requests a mask, up to the ``<response>`` token.
            names_SL: tokens of the name of each structure, right-padded.
            grids_BG3, features_by_image: of :meth:`forward`.
            image_B: of :meth:`generate_images`.
        """
        kind_B = torch.full((len(input_ids),), TARGET_MASK, device=input_ids.device)
        conditions = self._conditions(input_ids, attention_mask, pixel_values, kind_B, None, grids_BG3, image_B, features_by_image)
        names_Sh = embed_names(self.get_input_embeddings(), names_SL, self.config.pad_token_id)
        return self.image_decoder.show(conditions, names_Sh)

    def _conditions(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Images,
        kind_B: Tensor,
        measured: KSpaceMeasurement | None = None,
        grids_BG3: Tensor | None = None,
        image_B: Tensor | None = None,
        features_by_image: Sequence[list[Tensor]] | None = None,
    ) -> Conditions:
        """Return the inputs of the image decoder after a pass of the backbone."""
        output = self(
            input_ids, attention_mask, pixel_values, logits_to_keep=1, grids_BG3=grids_BG3, features_by_image=features_by_image
        )
        assert output.hidden_states is not None
        pixels, features = _select_images(pixel_values, output, range(len(input_ids)) if image_B is None else image_B.tolist())
        return Conditions(
            pixel_values_B1DHW=pixels,
            features=features,
            query_BQ=self.query_states(input_ids, output.hidden_states),
            kind_B=kind_B,
            measured=measured or KSpaceMeasurement.empty(pixels),
        )

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
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pixel_values: Images,
        answers: list[list[int]],
        grids_BG3: Tensor | None = None,
    ) -> Tensor:
        """Return the mean probability of the tokens of each answer after each prompt, (B, A). Prompts are padded on the left."""
        scores = []
        for answer in answers:
            tokens = torch.tensor(answer, device=input_ids.device).expand(len(input_ids), -1)
            ids = torch.cat([input_ids, tokens], -1)
            mask = torch.cat([attention_mask, torch.ones_like(tokens)], -1)
            logits = self(ids, mask, pixel_values, grids_BG3=grids_BG3).logits
            assert logits is not None
            probabilities = logits[:, -len(answer) - 1 : -1].float().softmax(-1)
            scores.append(probabilities.gather(-1, tokens[..., None]).squeeze(-1).mean(-1))
        return torch.stack(scores, -1)

    @torch.no_grad()
    def fit_visual_target(self, batches: Sequence[Tensor]) -> None:
        """Fit the whitening of the visual tokens on batches of training images, each (B, 1, D, H, W) of sizes of its own.

        The encoder must be pretrained.
        """
        self.visual_target.fit([self.vision(batch) for batch in batches])


def _axes(images: Images) -> int:
    """Return the number of axes of a box about these images: 3 if any of them has several slices, else 2."""
    return 3 if any(image.shape[1] > 1 for image in images) else 2


def _select_images(images: Images, output: OmniMRIOutput, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Return some of the images, which have one shape, (B, 1, D, H, W), and their features, every level."""
    if isinstance(images, Tensor):
        assert output.features is not None
        rows = list(indices)
        if rows == list(range(len(images))):
            return images, output.features
        return images[rows], [level[rows] for level in output.features]
    assert output.features_by_image is not None
    by_level = zip(*(output.features_by_image[index] for index in indices), strict=True)
    return torch.stack([images[index] for index in indices]), [torch.cat(levels) for levels in by_level]


AutoConfig.register(OmniMRIConfig.model_type, OmniMRIConfig)
AutoModelForImageTextToText.register(OmniMRIConfig, OmniMRIForConditionalGeneration)
