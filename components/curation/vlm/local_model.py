"""A Qwen-VL checkpoint in this process, its answers constrained to the schema token by token (llguidance).

Any model of the family that transformers loads for image-text-to-text is supported (tested: Qwen2.5-VL, Qwen3-VL); all use ChatML,
and their image processor has a variant without torchvision. Weights are read only from safetensors in a local folder.
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

from components.curation.vlm.prompt import SYSTEM, VlmQuery, max_answer_length
from components.errors import BadInput, JobFailed
from components.provenance import digest, file_md5
from components.settings import VisualSettings

_CHAT = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class _GrammarMask(LogitsProcessor):
    """Mask the tokens of each row of a batch that its matcher does not allow: the grammar of the schema, then end of sequence."""

    def __init__(self, matchers: list[LLMatcher], prompt: int, vocabulary: int, ends: list[int]) -> None:
        self.matchers, self.prompt, self.ends = matchers, prompt, ends
        self.masks = llguidance.numpy.allocate_token_bitmask(len(matchers), vocabulary)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores (batch, vocabulary) of every token that the grammar does not allow next to -inf."""
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
        settings: ``folder`` is set and contains ``config.json``, tokenizer, image processor and safetensors.

    Raises:
        BadInput: the folder contains no such checkpoint.
    """

    def __init__(self, settings: VisualSettings) -> None:
        folder = Path(str(settings.folder))
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="left")
            self.image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype="auto"
            )
        except (OSError, ValueError) as error:
            raise BadInput(
                f"no checkpoint of a vision-language model ({type(error).__name__})",
                where=str(folder),
                remedy="copy a Qwen-VL checkpoint in safetensors there, with its tokenizer and image processor",
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

    def answer(self, queries: Sequence[VlmQuery], schema: dict[str, Any]) -> list[str]:
        """Return one JSON text for each query, decoded greedily in one batch."""
        images = [Image.fromarray(query.image).convert("RGB") for query in queries]
        pixels = self.image_processor(images=images, return_tensors="pt")
        tokens = pixels["image_grid_thw"].prod(dim=-1) // self.image_processor.merge_size**2
        texts = [
            _CHAT.format(system=SYSTEM, image=self.image_token * int(count), question=query.question)
            for query, count in zip(queries, tokens, strict=True)
        ]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        length = inputs["input_ids"].shape[1]
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_flexible": False})
        matchers = [LLMatcher(self.guide, grammar) for _ in queries]
        if matchers[0].is_error():
            raise JobFailed("the schema has no grammar", where="curation.visual", remedy=matchers[0].get_error().splitlines()[0])
        mask = _GrammarMask(matchers, length, self.vocabulary, [self.tokenizer.eos_token_id])
        with torch.inference_mode():
            generated = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device),
                attention_mask=inputs["attention_mask"].to(self.device),
                mm_token_type_ids=(inputs["input_ids"] == self.model.config.image_token_id).int().to(self.device),
                pixel_values=pixels["pixel_values"].to(self.device, self.model.dtype),
                image_grid_thw=pixels["image_grid_thw"].to(self.device),
                logits_processor=LogitsProcessorList([mask]),
                max_new_tokens=max_answer_length(self.characters),
                do_sample=False,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return list(self.tokenizer.batch_decode(generated[:, length:], skip_special_tokens=True))
