"""Auxiliary losses of stage 4: all labeled structures of an image, from pixels and from visual tokens, whatever the instruction is.

A structure is known by its name alone, whose embedding is compared with features: label maps of any dataset can be trained on. The
comparison with pixels is part of the image decoder: detection, diagnosis and reports read findings and their names off it. The
comparison with visual tokens is part of the objective, and not of the saved model.

Shape letters: B samples, D slices, H rows, W columns, N visual tokens, S structures, L tokens of a name, h hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import IGNORE, StructureLabels
from model_core.config import OmniMRIConfig, Triple

PRESENT = 0.02
"""Share of a visual token's pixels from which a structure counts as present in it."""
LARGEST_WEIGHT = 3.0
"""Largest weight of a pixel of a small structure, relative to one of the largest class."""
SMOOTH = 64.0
"""Pixels that Dice counts as found besides those of the slice: it is that of a batch in which others show the structure, as
nnU-Net's "batch Dice". A false part on a slice without the structure costs as much as a missed one; with a smooth of one pixel,
the loss of an absent structure is nearly one whatever is predicted."""
POSITIVE_WEIGHT = 5.0
"""Weight of a present structure in the loss of tokens: lesions are in few of them."""


def embed_names(embed: nn.Module, names_SL: Tensor, pad_id: int) -> Tensor:
    """Return the mean embedding of the tokens of each name, scaled to a mean square of one, (S, h)."""
    valid = (names_SL != pad_id)[..., None]
    embedded = embed(names_SL)
    mean = (embedded * valid).sum(1) / valid.sum(1).clamp(min=1)
    return F.rms_norm(mean, (mean.shape[-1],))


def pixel_losses(logits_BSDHW: Tensor, labels: StructureLabels) -> Tensor:
    """Return weighted cross-entropy plus 1 - soft Dice of listed structures per structure that is shown, (B,); zero without labels.

    The weight of a class in the cross-entropy is the square root of how much smaller it is than the largest, at most
    :data:`LARGEST_WEIGHT`: a lesion of a hundred pixels counts.
    """
    logits = logits_BSDHW.masked_fill(~labels.listed_BS[:, :, None, None, None], -1e4)
    logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1)
    labeled = (labels.structures_BDHW != IGNORE).flatten(1).any(-1)
    truth = labels.structures_BDHW.clamp(min=0)
    classes = (truth[:, None] == torch.arange(logits.shape[1], device=truth.device).view(1, -1, 1, 1, 1)).flatten(2)
    sizes = classes.sum(-1)
    weight_BC = (sizes.amax(1, keepdim=True) / sizes.clamp(min=1)).sqrt().clamp(max=LARGEST_WEIGHT)
    weight = weight_BC.gather(1, truth.flatten(1))
    entropy = (weight * F.cross_entropy(logits, truth, reduction="none").flatten(1)).sum(1) / weight.sum(1)
    probability, one_hot = logits.softmax(1)[:, 1:].flatten(2), classes[:, 1:]
    overlap = (probability * one_hot).sum(-1)
    dice_BS = 1 - (2 * overlap + SMOOTH) / (probability.sum(-1) + one_hot.sum(-1) + SMOOTH)
    dice = (dice_BS * labels.listed_BS).sum(-1) / one_hot.any(-1).sum(-1).clamp(min=1)
    return (entropy + dice) * labeled


class StructureHead(nn.Module):
    """Compare hidden states of visual tokens with the names of structures."""

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        self.config = config
        self.token_query = nn.Linear(config.hidden_size, config.hidden_size + 1)

    def token_losses(self, hidden_BNh: Tensor, names_Sh: Tensor, labels: StructureLabels, grid: Triple) -> Tensor:
        """Return the cross-entropy of "this structure is in this token" over tokens and listed structures, (B,)."""
        weight_Sh, bias_S1 = self.token_query(names_Sh).split([self.config.hidden_size, 1], -1)
        logits = (hidden_BNh @ weight_Sh.T / self.config.hidden_size**0.5 + bias_S1.T).float()
        truth = self._token_truth(labels, grid)
        losses = F.binary_cross_entropy_with_logits(
            logits, truth, reduction="none", pos_weight=torch.tensor(POSITIVE_WEIGHT, device=logits.device)
        )
        listed = labels.listed_BS[:, None]
        return (losses * listed).sum((1, 2)) / (listed.sum((1, 2)) * losses.shape[1]).clamp(min=1)

    def _token_truth(self, labels: StructureLabels, grid: Triple) -> Tensor:
        """Return whether a structure is in a token, (B, N, S) float32."""
        structures = torch.arange(1, labels.listed_BS.shape[1] + 1, device=labels.structures_BDHW.device)
        one_hot = (labels.structures_BDHW[:, None] == structures.view(1, -1, 1, 1, 1)).float()
        stride = self.config.vision_patch * 2**self.config.connector_level
        depth = min(self.config.depth_pool, one_hot.shape[2])
        share = F.avg_pool3d(one_hot, (depth, stride, stride), ceil_mode=True, count_include_pad=False)
        return (share > PRESENT).float().flatten(2).transpose(1, 2)[:, : grid[0] * grid[1] * grid[2]]
