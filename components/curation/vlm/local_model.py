"""A Qwen-VL checkpoint in this process, its answers held to the schema token by token (llguidance).

Any model of the family that transformers loads for image-text-to-text will do (tested: Qwen2.5-VL, Qwen3-VL); all speak ChatML, and
their image processor has a form without torchvision. Weights are read from safetensors of a local folder only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from components.curation.vlm.prompt import SYSTEM, Ask, longest_answer
from components.errors import BadInput, JobFailed
from components.provenance import digest, file_md5
from components.settings import VisualSettings

_CHAT = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class _Held(LogitsProcessor):
    """Lets each row of a batch go on only where its matcher can: the grammar of the schema, then the end."""

    def __init__(self, matchers: list[LLMatcher], prompt: int, vocabulary: int, ends: list[int]) -> None:
        self.matchers, self.prompt, self.ends = matchers, prompt, ends
        self.masks = llguidance.numpy.allocate_token_bitmask(len(matchers), vocabulary)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (batch, vocabulary) with -inf for every token that the grammar does not allow next."""
        allowed = np.zeros(scores.shape, dtype=np.bool_)
        for row, matcher in enumerate(self.matchers):
            if input_ids.shape[1] > self.prompt and not matcher.is_stopped():
                matcher.consume_token(int(input_ids[row, -1]))
            if matcher.is_stopped():
                allowed[row, self.ends] = True
                continue
            llguidance.numpy.fill_next_token_bitmask(matcher, self.masks, row)
            bits = np.unpackbits(self.masks[row].view(np.uint8), bitorder="little")[: scores.shape[1]]
            allowed[row, : len(bits)] = bits.astype(np.bool_)
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), float("-inf"))


class LocalModel:
    """A checkpoint of the Qwen-VL family.

    Args:
        settings: ``folder`` is set; ``config.json``, tokenizer, image processor and safetensors are in it.

    Raises:
        BadInput: the folder holds no such checkpoint.
    """

    def __init__(self, settings: VisualSettings) -> None:
        folder = Path(str(settings.folder))
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
            self.images = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError) as error:
            raise BadInput(
                f"no checkpoint of a vision-language model ({type(error).__name__})",
                where=str(folder),
                remedy="put a Qwen-VL checkpoint in safetensors there, with its tokenizer and image processor",
            ) from None
        self.tokenizer = tokenizer
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = model.to(self.device).eval()
        self.characters = settings.field_characters
        self.vocabulary = int(self.model.get_output_embeddings().weight.shape[0])
        self.guide = llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=self.vocabulary)
        self.image_token = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        self.digest = digest([(path.name, file_md5(path)) for path in files])[:16]

    def answer(self, asks: Sequence[Ask], schema: dict[str, Any]) -> list[str]:
        """One JSON text for each question, written as one batch, greedily."""
        seen = self.images(images=[Image.fromarray(ask.image).convert("RGB") for ask in asks], return_tensors="pt")
        tokens = seen["image_grid_thw"].prod(dim=-1) // self.images.merge_size**2
        texts = [
            _CHAT.format(system=SYSTEM, image=self.image_token * int(count), question=ask.question)
            for ask, count in zip(asks, tokens, strict=True)
        ]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        length = inputs["input_ids"].shape[1]
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        matchers = [LLMatcher(self.guide, grammar) for _ in asks]
        if matchers[0].is_error():
            raise JobFailed("the schema has no grammar", where="curation.visual", remedy=matchers[0].get_error().splitlines()[0])
        held = _Held(matchers, length, self.vocabulary, [self.tokenizer.eos_token_id])
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device),
                attention_mask=inputs["attention_mask"].to(self.device),
                mm_token_type_ids=(inputs["input_ids"] == self.model.config.image_token_id).int().to(self.device),
                pixel_values=seen["pixel_values"].to(self.device, self.model.dtype),
                image_grid_thw=seen["image_grid_thw"].to(self.device),
                logits_processor=LogitsProcessorList([held]),
                max_new_tokens=longest_answer(self.characters),
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return list(self.tokenizer.batch_decode(made[:, length:], skip_special_tokens=True))
