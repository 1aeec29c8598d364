"""The grammar of answers, which generation cannot leave: an image, a mask, boxes, or text without any of their tokens.

::

    answer = <image> end | <seg> end | box+ end | text+ end
    box    = <bbox> text+ row column row column                             about a slice
           | <bbox> text+ slice row column slice row column                 about a volume

The edges are location tokens; the second slice, row and column are the larger ones. Where the question states what is asked for,
the caller names the beginnings that an answer to it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from model_core.boxes import GRID
from model_core.config import OmniMRIConfig

NAME_TOKENS = 8
"""Largest number of tokens of the name of a box."""

Beginnings = Sequence[Sequence[int]]
"""Token ids one of which an answer begins with."""


class AnswerGrammar(LogitsProcessor):
    """Give every token that an answer cannot continue with the score minus infinity.

    The answer of a sequence is what follows its ``<response>`` token; a sequence without one is not constrained.

    Args:
        axes: of a box, 2 about slices or 3 about volumes.
        beginnings: of each sequence of the batch: token ids one of which its answer begins with, none = any. Empty = any for all.
    """

    def __init__(self, config: OmniMRIConfig, axes: int = 2, beginnings: Sequence[Beginnings] = ()) -> None:
        self.config, self._axes, self._beginnings = config, axes, beginnings
        text = torch.ones(config.vocab_size, dtype=torch.bool)
        first = config.location_token_id
        self._locations = range(first, first + GRID)
        markers = (config.generate_image_token_id, config.seg_token_id, config.box_token_id)
        others = (config.image_token_id, config.response_token_id, config.pad_token_id)
        text[[*markers, *others, *self._locations, config.eos_token_id]] = False
        self._text = text
        self._start = text.clone()
        self._start[list(markers)] = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask the scores (B, V) of the next token of the sequences (B, L)."""
        beginnings = self._beginnings or [()] * len(input_ids)
        rows = zip(input_ids.tolist(), beginnings, strict=True)
        allowed = torch.stack([self._allowed(ids, of_answer) for ids, of_answer in rows])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _allowed(self, ids: list[int], beginnings: Beginnings) -> Tensor:
        """Return which tokens may follow a sequence, (V,) bool."""
        config = self.config
        if config.response_token_id not in ids:
            return torch.ones_like(self._text)
        answer = ids[len(ids) - ids[::-1].index(config.response_token_id) :]
        if following := _find_following(answer, beginnings):
            return self._only(*following)
        if not answer:
            return self._start
        if answer[0] in (config.generate_image_token_id, config.seg_token_id):
            return self._only(config.eos_token_id)
        if answer[0] == config.box_token_id:
            return self._after_box(answer)
        return self._with(self._text, config.eos_token_id)

    def _after_box(self, answer: list[int]) -> Tensor:
        """Return which tokens may follow an answer of boxes whose last one may be incomplete."""
        config = self.config
        box = answer[len(answer) - answer[::-1].index(config.box_token_id) :]
        edges = [token - self._locations.start for token in box if token in self._locations]
        if not edges and len(box) < NAME_TOKENS:
            return self._with(self._text, *self._locations[: GRID - 1]) if box else self._text
        if len(edges) == 2 * self._axes:
            return self._only(config.eos_token_id, config.box_token_id)
        if len(edges) < self._axes:
            return self._only(*self._locations[: GRID - 1])
        return self._only(*self._locations[edges[len(edges) - self._axes] + 1 :])

    def _only(self, *tokens: int) -> Tensor:
        return self._with(torch.zeros_like(self._text), *tokens)

    def _with(self, allowed: Tensor, *tokens: int) -> Tensor:
        allowed = allowed.clone()
        allowed[list(tokens)] = True
        return allowed


def _find_following(answer: list[int], beginnings: Iterable[Sequence[int]]) -> set[int]:
    """Return the tokens that lead from an answer so far towards a beginning; none if it has one already."""
    if any(answer[: len(one)] == list(one) for one in beginnings):
        return set()
    return {one[len(answer)] for one in beginnings if list(one[: len(answer)]) == answer}
