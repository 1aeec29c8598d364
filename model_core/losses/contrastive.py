"""Contrastive losses.

Shape letters: B samples (of all ranks), N cells of a grid, c embedding size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.losses.reduction import gather_with_gradient, rank


def multi_positive_loss(similarity_BB: Tensor, positive_BB: Tensor, candidate_BB: Tensor) -> Tensor:
    """Average ``-mean_p log softmax`` over the candidates, over anchors with a positive (SupCon, arXiv:2004.11362, eq. 2).

    The loss and its gradient are zero if no anchor has a positive.
    """
    positive = positive_BB & candidate_BB
    logits = similarity_BB.float().masked_fill(~candidate_BB, -1e4)
    log_probability = logits.log_softmax(-1)
    per_anchor = -(log_probability * positive).sum(-1) / positive.sum(-1).clamp(min=1)
    anchors = positive.any(-1)
    return (per_anchor * anchors).sum() / anchors.sum().clamp(min=1)


def standardize(rows_Bc: Tensor) -> Tensor:
    """Gather the samples of all ranks, and scale each feature to mean 0 and standard deviation 1 over them.

    Pooled features of a new encoder point in almost the same direction for every image; without standardization, small batches
    stay collapsed (every similarity 1, the loss at ln B) for hundreds of steps.
    """
    rows = gather_with_gradient(rows_Bc).float()
    return (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-6).sqrt()


def volume_discrimination_loss(embedding_Bc: Tensor, group_B: Tensor, temperature: float) -> Tensor:
    """Attract volumes of the same (sequence, plane, anatomy) and repel all others (paper section 4.1, third objective).

    Rows are those of all ranks.
    """
    rows, group = F.normalize(embedding_Bc.float(), dim=-1), group_B
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return multi_positive_loss(rows @ rows.T / temperature, group[:, None] == group[None], others)


def neighboring_patches_loss(features_BNc: Tensor, grid: tuple[int, int, int], volume_B: Tensor, temperature: float) -> Tensor:
    """Compute the patch-level InfoNCE (paper section 4.1, second objective) of the patches of this rank.

    The positive of a patch is its right-hand neighbor; negatives are the neighbor patches of other volumes, on all ranks. Distant
    patches of the same volume are neither, because anatomy repeats (left and right hemisphere).
    """
    depth, height, width = grid
    cells = F.normalize(features_BNc.float(), dim=-1).unflatten(1, (depth, height, width))
    anchor, neighbor = cells[..., :-1, :].flatten(1, 3), gather_with_gradient(cells[..., 1:, :].flatten(1, 3))
    batch, cell_count = anchor.shape[:2]
    own = torch.arange(batch * cell_count, device=anchor.device) + rank() * batch * cell_count
    own_volume = volume_B.repeat_interleave(cell_count)
    other_volume = gather_with_gradient(volume_B.double()).long().repeat_interleave(cell_count)
    similarity = anchor.flatten(0, 1) @ neighbor.flatten(0, 1).T / temperature
    candidate = (own_volume[:, None] != other_volume[None]).scatter(1, own[:, None], True)
    return F.cross_entropy(similarity.masked_fill(~candidate, -1e4), own)


def image_text_loss(image_Bc: Tensor, text_Bc: Tensor, same_text_BB: Tensor, log_scale: Tensor) -> Tensor:
    """Compute CLIP's symmetric loss over the samples of all ranks; all samples with the same text are positives of each other."""
    images, texts = F.normalize(image_Bc.float(), dim=-1), F.normalize(text_Bc.float(), dim=-1)
    similarity = images @ texts.T * log_scale.float().exp().clamp(max=100)
    candidates = torch.ones_like(same_text_BB)
    images_to_texts = multi_positive_loss(similarity, same_text_BB, candidates)
    texts_to_images = multi_positive_loss(similarity.T, same_text_BB, candidates)
    return (images_to_texts + texts_to_images) / 2
