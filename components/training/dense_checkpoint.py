"""Import of a dense Qwen2.5 checkpoint from a local folder, as ``Qwen2ForCausalLM.save_pretrained`` writes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2Config

from components.errors import BadInput
from components.files import read_json
from model_core import OmniMRIConfig, OmniMRIForConditionalGeneration
from model_core.config import PRESETS
from model_core.tokenization import END, PAD, special_ids
from model_core.upcycling import upcycle

SIZES = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "intermediate_size": "moe_intermediate_size",
}
"""Sizes of the checkpoint and the corresponding sizes of a preset, which must be equal."""


@dataclass(frozen=True)
class DenseCheckpoint:
    """A folder with ``config.json`` and ``*.safetensors``, one or many."""

    folder: Path
    config: Qwen2Config

    @classmethod
    def open(cls, folder: Path) -> DenseCheckpoint:
        """Read the configuration of a checkpoint; its weights are not read yet.

        Raises:
            BadInput: the folder contains no Qwen2 checkpoint, or one with scaled rotary positions.
        """
        path, files = folder / "config.json", len(list(folder.glob("*.safetensors")))
        kind = read_json(path).get("model_type") if path.exists() else None
        if kind != "qwen2" or not files:
            raise BadInput(
                f"no Qwen2 checkpoint (model_type {kind}, {files} safetensors files)",
                where=str(folder),
                remedy="name the folder of a dense Qwen2.5: config.json and *.safetensors",
            )
        config = Qwen2Config.from_pretrained(folder, local_files_only=True)
        scaling = _rotary(config)["rope_type"]
        if scaling != "default":
            raise BadInput(
                f"rotary positions are scaled ({scaling})", where=str(path), remedy="use the checkpoint without long context"
            )
        return cls(folder, config)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and value of each weight."""
        for path in sorted(self.folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    yield name, file.get_tensor(name)

    def require_fit(self, preset: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reject a preset or a tokenizer that does not fit this checkpoint.

        Raises:
            BadInput: sizes differ, or the tokenizer is not the one that the checkpoint was trained with.
        """
        sizes = OmniMRIConfig(**PRESETS[preset])
        required = {ours: getattr(self.config, theirs) for theirs, ours in SIZES.items()}
        differing = [
            f"{name} {value}, preset {getattr(sizes, name)}" for name, value in required.items() if value != getattr(sizes, name)
        ]
        if differing:
            fitting = [name for name in PRESETS if _has_sizes(OmniMRIConfig(**PRESETS[name]), required)]
            remedy = f"set model.preset={fitting[0]}" if fitting else "use a checkpoint of the preset's size"
            raise BadInput(f"does not fit preset {preset}: {'; '.join(differing)}", where=str(self.folder), remedy=remedy)
        if len(tokenizer) > self.config.vocab_size:
            raise BadInput(
                f"the tokenizer has {len(tokenizer)} entries, the checkpoint {self.config.vocab_size}",
                where=str(self.folder),
                remedy="set model.tokenizer to the checkpoint's own tokenizer (most often the same folder)",
            )
        vocabulary, end = tokenizer.get_vocab(), self.config.eos_token_id
        end_tokens = {vocabulary[PAD], vocabulary[END]}
        if end is not None and not end_tokens.issuperset(end if isinstance(end, list) else [end]):
            raise BadInput(
                f"the checkpoint ends a text with token {end}, the tokenizer with {sorted(end_tokens)}",
                where=str(self.folder),
                remedy="set model.tokenizer to the checkpoint's own tokenizer (most often the same folder)",
            )


def _has_sizes(config: OmniMRIConfig, sizes: dict[str, int]) -> bool:
    return all(getattr(config, name) == size for name, size in sizes.items())


def _rotary(config: Qwen2Config) -> dict[str, Any]:
    return dict(config.rope_parameters or {})


def upcycled_model(
    folder: Path, preset: str, tokenizer: PreTrainedTokenizerBase, codes: Mapping[str, int] | None = None
) -> OmniMRIForConditionalGeneration:
    """Return a new network whose backbone is an upcycled dense checkpoint; the other weights are random.

    The vocabulary remains that of the checkpoint: our special tokens use its spare entries.

    Args:
        folder: of the dense checkpoint.
        preset: size of the network.
        tokenizer: of the checkpoint, with our special tokens.
        codes: further fields of the configuration.

    Raises:
        BadInput: the folder contains no such checkpoint, or it does not fit the preset or the tokenizer.
    """
    checkpoint = DenseCheckpoint.open(folder)
    checkpoint.require_fit(preset, tokenizer)
    dense = checkpoint.config
    adopted: dict[str, Any] = {
        "vocab_size": dense.vocab_size,
        "tie_word_embeddings": dense.tie_word_embeddings,
        "rms_norm_eps": dense.rms_norm_eps,
        "rope_theta": _rotary(dense)["rope_theta"],
        **(codes or {}),
    }
    model = OmniMRIForConditionalGeneration(OmniMRIConfig.from_preset(preset, **adopted, **special_ids(tokenizer)))
    try:
        upcycle(model, checkpoint.weights())
    except ValueError as error:
        raise BadInput(str(error), where=str(folder), remedy="download the checkpoint again: its files are incomplete") from None
    return model
