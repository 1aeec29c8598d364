"""Next-token cross-entropy of interleaved sequences, used by stages 3 and 4.

The edges of boxes are ordered: the target of a location token is a normal distribution over the bins around it, so that a near
miss costs less than a far one.

Shape letters: B samples, L tokens, M tokens in the loss, E edges of boxes among them, G bins.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.batch import IGNORE
from model_core.boxes import GRID
from model_core.modeling_omnimri import OmniMRIOutput

EDGE_DEVIATION = 1.5
"""Standard deviation of the target of an edge, bins."""


def predicts_label(labels_BL: Tensor) -> Tensor:
    """Return the tokens that precede a labeled token, (B, L) bool: those whose logits the loss needs."""
    return F.pad(labels_BL[:, 1:] != IGNORE, (0, 1))


def share_predicted(labels_BL: Tensor) -> float:
    """Return the share of tokens for which the text head is evaluated."""
    return float(predicts_label(labels_BL).float().mean())


def text_losses(output: OmniMRIOutput, labels_BL: Tensor, first_location: int) -> Tensor:
    """Compute the cross-entropy of every labeled token, at the position of the token before it, zero elsewhere, (B, L).

    Args:
        output: with the logits of the tokens of :func:`predicts_label` only.
        labels_BL: of the batch.
        first_location: id of the first location token.
    """
    assert output.logits is not None
    predicted_BL = predicts_label(labels_BL)
    logits_MV, labels_M = output.logits.float(), labels_BL.roll(-1, 1)[predicted_BL]
    losses_M = F.cross_entropy(logits_MV, labels_M, reduction="none")
    bins_M = labels_M - first_location
    edges = ((bins_M >= 0) & (bins_M < GRID)).nonzero().squeeze(-1)
    losses_M = losses_M.index_copy(0, edges, _edge_losses(logits_MV[edges], bins_M[edges], first_location))
    return losses_M.new_zeros(labels_BL.shape).masked_scatter(predicted_BL, losses_M)


def _edge_losses(logits_EV: Tensor, bins_E: Tensor, first_location: int) -> Tensor:
    """Return the Kullback-Leibler divergence of the predicted distribution from that of each edge, (E,); zero is perfect."""
    log_probability_EG = logits_EV.log_softmax(-1)[:, first_location : first_location + GRID]
    distance_EG = torch.arange(GRID, device=bins_E.device) - bins_E[:, None]
    target_EG = (-0.5 * (distance_EG / EDGE_DEVIATION) ** 2).softmax(-1)
    return F.kl_div(log_probability_EG, target_EG, reduction="none").sum(-1)
