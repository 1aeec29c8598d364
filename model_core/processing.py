"""Conversion of text and images to token sequences and back. All stages and tasks use one format, for one image::

    <|vision_start|> <|image_pad|> x N <|vision_end|> instruction <response> response <|im_end|>

and for several series, each after the line of its header facts::

    line <|vision_start|> <|image_pad|> x N <|vision_end|> line <|vision_start|> ... instruction <response> response <|im_end|>

Shape letters: B samples, L tokens, G image blocks of a sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model_core.batch import IGNORE
from model_core.config import Triple
from model_core.sequences import stack_grids
from model_core.tokenization import END, IMAGE_PAD, PAD, RESPONSE, VISION_END, VISION_START


@dataclass(frozen=True)
class Encoded:
    """One sequence and its labels, of equal length; labels are :data:`~model_core.batch.IGNORE` at tokens without a text loss.

    Attributes:
        grids: of the image blocks; empty = one image, whose pixels state it.
    """

    input_ids: list[int]
    labels: list[int]
    grids: tuple[Triple, ...] = ()


@dataclass(frozen=True)
class Series:
    """An image block of a sequence: the grid of its visual tokens, and the line of text before it (may be empty)."""

    grid: Triple
    line: str = ""


@dataclass(frozen=True)
class PackedSequences:
    """Padded sequences of a batch, with the grids of their image blocks (zeros after the last one of a sequence)."""

    input_ids_BL: Tensor
    attention_mask_BL: Tensor
    labels_BL: Tensor
    grids_BG3: Tensor


class Processor:
    """Encode instructions, descriptions and pairs; decode answers."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        self._image, self._end, self._response = vocabulary[IMAGE_PAD], vocabulary[END], vocabulary[RESPONSE]
        self._pad = vocabulary[PAD]
        self._vision_start, self._vision_end = vocabulary[VISION_START], vocabulary[VISION_END]

    @property
    def pad_id(self) -> int:
        """Id of the padding token."""
        return self._pad

    def tokens(self, text: str) -> list[int]:
        """Return the token ids of a text without special tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode(self, instruction: str, response: str | None, image_tokens: int) -> Encoded:
        """Encode an instruction about an image with its response (the loss is on the response only), or without one as a prompt."""
        return self._encode(self._block(image_tokens), instruction, response)

    def encode_study(self, instruction: str, response: str | None, series: Sequence[Series]) -> Encoded:
        """Encode an instruction about any number of series, each after its line, as :meth:`encode` does one image."""
        blocks = [token for one in series for token in (*self.tokens(one.line), *self._block(math.prod(one.grid)))]
        return self._encode(blocks, instruction, response, tuple(one.grid for one in series))

    def encode_prefix(self, instruction: str, response: str, series: Sequence[Series]) -> Encoded:
        """Encode an instruction about series and the beginning of its response, as :meth:`encode_answer_prefix` does one image."""
        prompt = self.encode_study(instruction, None, series)
        beginning = self.tokens(response)
        return Encoded(prompt.input_ids + beginning, prompt.labels + [IGNORE] * len(beginning), prompt.grids)

    def encode_answer_prefix(self, instruction: str, response: str, image_tokens: int) -> list[int]:
        """Encode an instruction and the beginning of its response without an end token: the input of the image decoder."""
        return [*self.encode(instruction, None, image_tokens).input_ids, *self.tokens(response)]

    def encode_description(self, text: str) -> list[int]:
        """Encode a description alone, with an end token."""
        return [*self.tokens(text), self._end]

    def encode_pair(self, text: str, image_tokens: int, image_first: bool) -> Encoded:
        """Encode an image and its description, in either order; the loss is on the text."""
        block, text_ids = self._block(image_tokens), self.tokens(text)
        ignored = [IGNORE] * len(block)
        if image_first:
            return Encoded([*block, *text_ids, self._end], [*ignored, *text_ids, self._end])
        return Encoded([*text_ids, *block, self._end], [*text_ids, *ignored, IGNORE])

    def decode(self, ids: Tensor | list[int]) -> str:
        """Return the text of generated ids up to the end token; keep task markers such as ``<seg>``."""
        values = [int(i) for i in ids]
        values = values[: values.index(self._end)] if self._end in values else values
        return str(self.tokenizer.decode([i for i in values if i != self.pad_id], skip_special_tokens=False)).strip()

    def pack(self, encoded: Sequence[Encoded], left: bool = False) -> PackedSequences:
        """Pad sequences that :meth:`encode_study` encoded to the longest. Training pads on the right, generation on the left."""
        ids, mask = self.pad([one.input_ids for one in encoded], left=left)
        labels, _ = self.pad([one.labels for one in encoded], IGNORE, left=left)
        return PackedSequences(ids, mask, labels, stack_grids([one.grids for one in encoded]))

    def pad(self, sequences: list[list[int]], value: int | None = None, left: bool = False) -> tuple[Tensor, Tensor]:
        """Pad sequences to the longest: ids (B, L) and mask (B, L), int64. Training pads on the right, generation on the left."""
        longest = max(len(sequence) for sequence in sequences)
        filler = self.pad_id if value is None else value
        ids = torch.full((len(sequences), longest), filler, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            span = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
            ids[row, span] = torch.tensor(sequence, dtype=torch.long)
            mask[row, span] = 1
        return ids, mask

    def save_pretrained(self, folder: Path) -> None:
        """Write the files of the tokenizer."""
        self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(cls, folder: Path) -> Processor:
        """Read the files that :meth:`save_pretrained` wrote; never download."""
        return cls(PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True))

    def _encode(self, images: list[int], instruction: str, response: str | None, grids: tuple[Triple, ...] = ()) -> Encoded:
        prompt = [*images, *self.tokens(instruction), self._response]
        answer = [] if response is None else [*self.tokens(response), self._end]
        return Encoded(prompt + answer, [IGNORE] * len(prompt) + answer, grids)

    def _block(self, image_tokens: int) -> list[int]:
        return [self._vision_start, *[self._image] * image_tokens, self._vision_end]
