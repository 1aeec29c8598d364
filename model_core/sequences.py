"""Layout of interleaved sequences: image blocks, three-axis positions, attention mask, placement of visual tokens.

A sequence has any number of image blocks, each with a grid of its own. The grids come with the sequence
(:meth:`model_core.processing.Processor.pack`); nothing here assumes that two blocks are alike.

Shape letters: B samples, L tokens, G image blocks of a sequence, N visual tokens of all sequences, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.config import Triple


def stack_grids(grids: Sequence[Sequence[Triple]]) -> Tensor:
    """Return the grids of the image blocks of sequences, (B, G, 3) int64; zeros after the last block of a sequence."""
    most = max((len(blocks) for blocks in grids), default=0)
    stacked = torch.zeros(len(grids), max(most, 1), 3, dtype=torch.long)
    for row, blocks in enumerate(grids):
        if blocks:
            stacked[row, : len(blocks)] = torch.tensor([list(grid) for grid in blocks])
    return stacked


def one_block_each(grid: Triple, samples: int, device: torch.device | str | None = None) -> Tensor:
    """Return the grids (B, 1, 3) of sequences with one image block of the same grid each."""
    return torch.tensor(grid, device=device).expand(samples, 1, 3)


def index_image_blocks(is_image_BL: Tensor, grids_BG3: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of each image token in its block, and the number (from 1) of its block; 0 for text, both (B, L)."""
    sizes_BG = grids_BG3.prod(-1)
    ends_BG = sizes_BG.cumsum(-1)
    order = is_image_BL.long().cumsum(-1) - 1
    block = torch.searchsorted(ends_BG, order.clamp(min=0), right=True).clamp(max=ends_BG.shape[1] - 1)
    zero = torch.zeros_like(order)
    index = order - (ends_BG - sizes_BG).gather(1, block)
    return torch.where(is_image_BL, index, zero), torch.where(is_image_BL, block + 1, zero)


def compute_positions(is_image_BL: Tensor, valid_BL: Tensor, grids_BG3: Tensor) -> Tensor:
    """Return the positions (3, B, L) of the tokens of sequences, as in Qwen2-VL (arXiv:2409.12191, section 2.1).

    A text token has the same position on all axes. The tokens of an image have the positions of its grid, offset by the position of
    the text before it; the text after it continues past the largest of them, that of the slice axis included. Padding does not
    advance the position.
    """
    index, block = index_image_blocks(is_image_BL, grids_BG3)
    chosen = (block - 1).clamp(min=0)[..., None].expand(-1, -1, 3)
    depth, height, width = grids_BG3.gather(1, chosen).clamp(min=1).unbind(-1)
    ends_block = is_image_BL & (index == depth * height * width - 1)
    largest = torch.maximum(torch.maximum(depth, height), width)
    advance = (valid_BL & ~is_image_BL).long() + ends_block.long() * largest
    start = advance.cumsum(-1) - advance
    inside = torch.stack([index // (height * width), index // width % height, index % width])
    return start + torch.where(is_image_BL, inside, torch.zeros_like(index))


def compute_last_position(is_image_BL: Tensor, valid_BL: Tensor, grids_BG3: Tensor) -> Tensor:
    """Return :func:`compute_positions` of the last token alone, (3, B, 1), which must be text: one step of generation."""
    text_B = (valid_BL & ~is_image_BL)[:, :-1].sum(-1)
    complete_BG = grids_BG3.prod(-1).cumsum(-1) <= is_image_BL.sum(-1, keepdim=True)
    images_B = (grids_BG3.amax(-1) * complete_BG).sum(-1)
    return (text_B + images_B).expand(3, -1)[..., None]


def build_attention_mask(is_image_BL: Tensor, valid_BS: Tensor, bidirectional_B: Tensor, grids_BG3: Tensor) -> Tensor:
    """Return which tokens may attend to which, (B, 1, L, L) bool, True = may attend.

    Attention is causal, and bidirectional within the image blocks of samples marked in ``bidirectional_B``. Image blocks whose
    tokens are predicted must stay causal, otherwise each token would see the next one.
    """
    length = is_image_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=is_image_BL.device).tril()
    _, block = index_image_blocks(is_image_BL, grids_BG3)
    same_block = (block[:, :, None] == block[:, None, :]) & is_image_BL[:, :, None] & bidirectional_B[:, None, None]
    itself = torch.eye(length, dtype=torch.bool, device=is_image_BL.device)  # a row of padding must attend to something
    return (((causal | same_block) & valid_BS[:, None, :]) | itself)[:, None]


def place_visual_tokens(embeddings_BLH: Tensor, is_image_BL: Tensor, tokens_NH: Tensor, grids_BG3: Tensor) -> Tensor:
    """Replace the embeddings of the image tokens by the visual tokens, which are in the order of sequences and their blocks.

    Raises:
        ValueError: the number of image tokens of a sequence is not the number of visual tokens of its images.
    """
    counts, needed = is_image_BL.sum(-1), grids_BG3.prod(-1).sum(-1)
    if not bool((counts == needed).all()) or int(counts.sum()) != len(tokens_NH):
        raise ValueError(
            f"the images of the sequences have {needed.tolist()} visual tokens, {len(tokens_NH)} in all; found {counts.tolist()} "
            "image tokens"
        )
    return embeddings_BLH.masked_scatter(is_image_BL[..., None], tokens_NH.to(embeddings_BLH.dtype))
