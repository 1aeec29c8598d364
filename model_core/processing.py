"""From text and images to sequences, and back to text. One format for all stages and tasks::

<|vision_start|> <|image_pad|> x N <|vision_end|> instruction <response> response <|im_end|>
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model_core.batch import IGNORE
from model_core.tokenization import END, IMAGE_PAD, PAD, RESPONSE, VISION_END, VISION_START


@dataclass(frozen=True)
class Encoded:
    """One sequence; ``labels`` are :data:`~model_core.batch.IGNORE` where no text loss is carried. Both of the same length."""

    input_ids: list[int]
    labels: list[int]


class Processor:
    """Encodes instructions, descriptions and pairs; decodes answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._image, self._end, self._response = vocabulary[IMAGE_PAD], vocabulary[END], vocabulary[RESPONSE]
        self._pad = vocabulary[PAD]
        self._vision_start, self._vision_end = vocabulary[VISION_START], vocabulary[VISION_END]

    @property
    def pad_id(self) -> int:
        """Id of the padding."""
        return self._pad

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, instruction: str, response: str | None, image_tokens: int) -> Encoded:
        """Instruction about an image, with its response (loss on the response only) or, for a question, without."""
        prompt = [*self._block(image_tokens), *self.tokens(instruction), self._response]
        answer = [] if response is None else [*self.tokens(response), self._end]
        return Encoded(prompt + answer, [IGNORE] * len(prompt) + answer)

    def encode_answer_prefix(self, instruction: str, response: str, image_tokens: int) -> list[int]:
        """Instruction and the response as far as it is known, nothing closed: what an image is decoded from."""
        return [*self.encode(instruction, None, image_tokens).input_ids, *self.tokens(response)]

    def encode_description(self, text: str) -> list[int]:
        """A description alone, closed."""
        return [*self.tokens(text), self._end]

    def encode_pair(self, text: str, image_tokens: int, image_first: bool) -> Encoded:
        """An image and its description, in either order; the text carries loss."""
        block, words = self._block(image_tokens), self.tokens(text)
        silent = [IGNORE] * len(block)
        if image_first:
            return Encoded([*block, *words, self._end], [*silent, *words, self._end])
        return Encoded([*words, *block, self._end], [*words, *silent, IGNORE])

    def decode(self, ids: Tensor | list[int]) -> str:
        """Text of generated ids, up to the end of the answer; task markers such as ``<seg>`` are kept."""
        values = [int(i) for i in ids]
        values = values[: values.index(self._end)] if self._end in values else values
        return str(self.tokenizer.decode([i for i in values if i != self.pad_id], skip_special_tokens=False)).strip()

    def pad(self, sequences: list[list[int]], value: int | None = None, left: bool = False) -> tuple[Tensor, Tensor]:
        """Pad to the longest: ids (B, L) and mask (B, L), int64. Training pads right, generation left."""
        longest = max(len(sequence) for sequence in sequences)
        filler = self.pad_id if value is None else value
        ids = torch.full((len(sequences), longest), filler, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
            ids[row, place] = torch.tensor(sequence, dtype=torch.long)
            mask[row, place] = 1
        return ids, mask

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Processor:
        """Read what :meth:`save_pretrained` wrote, from this machine only."""
        return cls(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))

    def _block(self, image_tokens: int) -> list[int]:
        return [self._vision_start, *[self._image] * image_tokens, self._vision_end]
