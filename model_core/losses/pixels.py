"""Losses of the image decoder.

Shape letters: B samples, S slices, H rows, W columns.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def structural_dissimilarity(prediction_S1HW: Tensor, target_S1HW: Tensor, window: int = 7) -> Tensor:
    """Return 1 - SSIM of each slice (S,), as fastMRI defines it.

    The window is uniform (7 x 7), covariances are sample covariances, and the data range is the maximum of the target.
    """
    data_range = target_S1HW.flatten(1).amax(1).clamp(min=1e-3).view(-1, 1, 1, 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    pixels = window**2
    sample = pixels / (pixels - 1)

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, window, stride=1)

    mu_p, mu_t = mean(prediction_S1HW), mean(target_S1HW)
    var_p = sample * (mean(prediction_S1HW**2) - mu_p**2)
    var_t = sample * (mean(target_S1HW**2) - mu_t**2)
    covariance = sample * (mean(prediction_S1HW * target_S1HW) - mu_p * mu_t)
    score = ((2 * mu_p * mu_t + c1) * (2 * covariance + c2)) / ((mu_p**2 + mu_t**2 + c1) * (var_p + var_t + c2))
    return 1 - score.flatten(1).mean(1)


def soft_dice_loss(logits_S1HW: Tensor, mask_S1HW: Tensor, smooth: float = 1.0) -> Tensor:
    """Return 1 - soft Dice of each slice (S,); ``smooth`` (pixels) makes an empty prediction of an empty mask perfect."""
    probability, mask = logits_S1HW.sigmoid().flatten(1), mask_S1HW.flatten(1)
    overlap = (probability * mask).sum(1)
    return 1 - (2 * overlap + smooth) / (probability.sum(1) + mask.sum(1) + smooth)


def mean_per_sample(values: Tensor) -> Tensor:
    """Average over all axes but the first, (B,)."""
    return values.flatten(1).mean(1)
