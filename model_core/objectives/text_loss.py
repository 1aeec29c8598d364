"""Next-token cross-entropy of interleaved sequences, used by stages 3 and 4.

Shape letters: B samples, L tokens, M tokens in the loss.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from model_core.batch import IGNORE
from model_core.modeling_omnimri import OmniMRIOutput


def predicts_label(labels_BL: Tensor) -> Tensor:
    """Return the tokens that precede a labeled token, (B, L) bool: those whose logits the loss needs."""
    return F.pad(labels_BL[:, 1:] != IGNORE, (0, 1))


def share_predicted(labels_BL: Tensor) -> float:
    """Return the share of tokens for which the text head is evaluated."""
    return float(predicts_label(labels_BL).float().mean())


def text_losses(output: OmniMRIOutput, labels_BL: Tensor) -> Tensor:
    """Compute the cross-entropy of every labeled token, at the position of the token before it, zero elsewhere, (B, L).

    ``output`` has the logits of the tokens of :func:`predicts_label` only.
    """
    assert output.logits is not None
    predicted_BL = predicts_label(labels_BL)
    losses_M = F.cross_entropy(output.logits.float(), labels_BL.roll(-1, 1)[predicted_BL], reduction="none")
    return losses_M.new_zeros(labels_BL.shape).masked_scatter(predicted_BL, losses_M)
