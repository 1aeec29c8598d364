"""Configuration of the network and its presets."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

Triple = tuple[int, int, int]


class OmniMRIConfig(PreTrainedConfig):
    """Sizes and special tokens of :class:`~model_core.modeling_omnimri.OmniMRIForConditionalGeneration`.

    Attributes:
        vision_width: channels C of the first Swin level; level l has ``C * 2**l``.
        vision_depths, vision_heads: blocks and attention heads of each level.
        vision_window: attention window (D, H, W) in tokens; vision_patch: patch size in plane, pixels.
        intensity_frequencies: frequencies of the sine and cosine codes of the intensity that enter the patch embedding (0 = the
            intensity alone). A linear embedding followed by a norm maps flat patches of every intensity to nearly one direction.
        position_frequencies: frequencies per axis of the position code that the connector adds to a visual token (0 = none).
            Rotary positions turn queries and keys only: without the code, what attention returns does not state a position.
        connector_level: Swin level (0 is the first) whose tokens enter the sequence;
            depth_pool: slices pooled into one token in 3-D.
        mask_unit: side of the masked squares of masked image modeling, pixels; mask_ratio: masked share.
        hidden_size ... rms_norm_eps: sizes of the backbone, named as in Qwen2-MoE. ``rope_sections`` are the numbers of rotary
            frequencies of the slice, row and column positions; they sum to half the head size.
        location_token_id: first of the 256 location tokens, whose ids are consecutive.
        visual_target_size: size of the predicted visual token; flow_width, flow_depth: width and blocks of its head.
        decoder_width: channels of the image decoder at full resolution; residual_scale: unit of the reconstruction's residual;
            refinements: times that a reconstruction is decoded anew from its own estimate, which the network must have learned.
        initializer_range: standard deviation of new weights; default 1 / sqrt(hidden_size). The usual 0.02 belongs to a width of
            2500: at a width of 32 or 128, the contribution of the image to the text's states would be too small to learn from in
            hundreds of steps.
    """

    model_type = "omnimri"

    def __init__(
        self,
        vocab_size: int = 1024,
        vision_width: int = 32,
        vision_depths: tuple[int, ...] = (1, 1, 2, 1),
        vision_heads: tuple[int, ...] = (2, 4, 8, 16),
        vision_window: Triple = (4, 6, 6),
        vision_patch: int = 4,
        intensity_frequencies: int = 3,
        position_frequencies: int = 8,
        connector_level: int = 2,
        depth_pool: int = 4,
        mask_unit: int = 8,
        mask_ratio: float = 0.6,
        hidden_size: int = 128,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 4,
        num_key_value_heads: int = 2,
        num_experts: int = 4,
        num_experts_per_tok: int = 2,
        moe_intermediate_size: int = 256,
        shared_expert_intermediate_size: int = 256,
        rope_sections: Triple = (4, 6, 6),
        rope_theta: float = 1e6,
        rms_norm_eps: float = 1e-6,
        visual_target_size: int = 32,
        flow_width: int = 128,
        flow_depth: int = 2,
        decoder_width: int = 16,
        residual_scale: float = 0.1,
        refinements: int = 0,
        image_token_id: int = 5,
        generate_image_token_id: int = 6,
        seg_token_id: int = 7,
        box_token_id: int = 8,
        response_token_id: int = 9,
        location_token_id: int = 10,
        pad_token_id: int = 0,
        eos_token_id: int = 2,
        tie_word_embeddings: bool = True,
        initializer_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.vision_width = vision_width
        self.vision_depths = tuple(vision_depths)
        self.vision_heads = tuple(vision_heads)
        self.vision_window: Triple = (vision_window[0], vision_window[1], vision_window[2])
        self.vision_patch = vision_patch
        self.intensity_frequencies = intensity_frequencies
        self.position_frequencies = position_frequencies
        self.connector_level = connector_level
        self.depth_pool = depth_pool
        self.mask_unit = mask_unit
        self.mask_ratio = mask_ratio
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        self.moe_intermediate_size = moe_intermediate_size
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.rope_sections: Triple = (rope_sections[0], rope_sections[1], rope_sections[2])
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.visual_target_size = visual_target_size
        self.flow_width = flow_width
        self.flow_depth = flow_depth
        self.decoder_width = decoder_width
        self.residual_scale = residual_scale
        self.refinements = refinements
        self.image_token_id = image_token_id
        self.generate_image_token_id = generate_image_token_id
        self.seg_token_id = seg_token_id
        self.box_token_id = box_token_id
        self.response_token_id = response_token_id
        self.location_token_id = location_token_id
        self.initializer_range = hidden_size**-0.5 if initializer_range is None else initializer_range
        special: dict[str, Any] = {
            "pad_token_id": pad_token_id,
            "eos_token_id": eos_token_id,
            "tie_word_embeddings": tie_word_embeddings,
        }
        super().__init__(**special, **kwargs)
        self._check()

    @property
    def levels(self) -> int:
        """Number of Swin levels."""
        return len(self.vision_depths)

    @property
    def head_dim(self) -> int:
        """Head size of the backbone."""
        return self.hidden_size // self.num_attention_heads

    @property
    def in_plane_multiple(self) -> int:
        """Number of pixels of which the height and width of an image must be multiples."""
        return self.vision_patch * 2 ** (self.levels - 1)

    def level_width(self, level: int) -> int:
        """Return the number of channels of a Swin level."""
        return int(self.vision_width * 2**level)

    def image_grid(self, depth: int, height: int, width: int) -> Triple:
        """Return the grid of visual tokens (slices, rows, columns) of an image of (D, H, W) voxels.

        Raises:
            ValueError: height or width is not a multiple of :attr:`in_plane_multiple`.
        """
        if height % self.in_plane_multiple or width % self.in_plane_multiple:
            raise ValueError(
                f"an image of {height} x {width} pixels does not fit this network: height and width must be multiples "
                f"of {self.in_plane_multiple}; pad or resample it"
            )
        stride = self.vision_patch * 2**self.connector_level
        return (-(-depth // self.depth_pool) if depth > 1 else 1, height // stride, width // stride)

    @classmethod
    def from_preset(cls, name: str, vocab_size: int | None = None, **others: Any) -> OmniMRIConfig:
        """Build one of the named sizes, for a new network, which refines; a saved one may be older.

        Args:
            vocab_size: entries of the tokenizer; None = the preset's own (that of Qwen2.5's checkpoint, spare entries included).
            others: ids of the special tokens, and other fields that differ from the preset.

        Raises:
            ValueError: unknown preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
        vocabulary = {} if vocab_size is None else {"vocab_size": vocab_size}
        return cls(**{"refinements": REFINEMENTS, **PRESETS[name], **vocabulary, **others})

    def _check(self) -> None:
        if len(self.vision_heads) != self.levels:
            raise ValueError(f"vision_heads has {len(self.vision_heads)} entries, vision_depths {self.levels}: give one per level")
        if 2 * sum(self.rope_sections) != self.head_dim:
            raise ValueError(f"rope_sections {self.rope_sections} must sum to half the head size, {self.head_dim // 2}")
        if not 0 <= self.connector_level < self.levels:
            raise ValueError(f"connector_level {self.connector_level} must be a Swin level, 0 to {self.levels - 1}")


_QWEN = {
    "vocab_size": 151936,
    "rope_theta": 1e6,
    "connector_level": 3,
    "vision_width": 96,
    "vision_depths": (2, 2, 6, 2),
    "vision_heads": (3, 6, 12, 24),
    "vision_window": (8, 8, 8),
    "mask_unit": 32,
    "num_experts": 8,
    "flow_width": 1024,
    "flow_depth": 6,
    "decoder_width": 48,
}
REFINEMENTS = 2
"""Refinements of a new network. On validation slices, more than two made images of one coil worse (docs/LOG.md)."""
PRESETS: dict[str, dict[str, Any]] = {
    "debug": {
        "vision_width": 16,
        "vision_depths": (1, 1, 1),
        "vision_heads": (1, 2, 4),
        "vision_window": (2, 4, 4),
        "mask_unit": 8,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_experts": 4,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "rope_sections": (2, 3, 3),
        "flow_width": 32,
        "flow_depth": 1,
        "visual_target_size": 8,
        "decoder_width": 8,
        "connector_level": 1,
    },
    "demo": {},
    "gpu8": {
        **_QWEN,
        "vocab_size": 32768,
        "vision_width": 64,
        "vision_heads": (2, 4, 8, 16),
        "flow_width": 512,
        "flow_depth": 4,
        "decoder_width": 32,
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 1024,
        "shared_expert_intermediate_size": 1024,
        "rope_sections": (8, 12, 12),
    },
    "gpu24": {
        **_QWEN,
        "vocab_size": 32768,
        "hidden_size": 768,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 2304,
        "shared_expert_intermediate_size": 2304,
        "rope_sections": (8, 12, 12),
    },
    "gpu48": {
        **_QWEN,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "num_experts": 4,
        "moe_intermediate_size": 4864,
        "shared_expert_intermediate_size": 4864,
        "rope_sections": (8, 12, 12),
    },
    "0.5b": {
        **_QWEN,
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 4864,
        "shared_expert_intermediate_size": 4864,
        "rope_sections": (8, 12, 12),
    },
    "1.5b": {
        **_QWEN,
        "hidden_size": 1536,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "moe_intermediate_size": 8960,
        "shared_expert_intermediate_size": 8960,
        "rope_sections": (16, 24, 24),
    },
    "7b": {
        **_QWEN,
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 18944,
        "shared_expert_intermediate_size": 18944,
        "rope_sections": (16, 24, 24),
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}
"""Sizes by name. ``debug`` trains in seconds and ``demo`` in minutes on a CPU. ``gpu8``, ``gpu24`` and ``gpu48`` train on a GPU
with so many GiB; ``gpu48`` is 0.5b with four experts. The others have the backbone of the Qwen2.5 of that size; the width of
their experts is that of the dense model, as upcycling requires. The 7-B model does not tie its embeddings."""
