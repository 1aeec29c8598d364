"""Losses against the libraries whose definitions they follow."""

import pytest
import torch
from monai.losses import DiceLoss
from skimage.metrics import structural_similarity

from model_core.losses.contrastive import image_text, multi_positive, neighbouring_patches
from model_core.losses.pixels import soft_dice_loss, structural_dissimilarity


def test_structural_dissimilarity_is_that_of_scikit_image() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(3, 1, 20, 24), torch.rand(3, 1, 20, 24)
    expected = [
        1 - structural_similarity(x[0].numpy(), y[0].numpy(), win_size=7, data_range=float(y.max()))
        for x, y in zip(a, b, strict=True)
    ]
    assert structural_dissimilarity(a, b).tolist() == pytest.approx(expected, abs=1e-4)


def test_dice_is_that_of_monai() -> None:
    torch.manual_seed(0)
    logits, mask = torch.randn(3, 1, 8, 8), (torch.rand(3, 1, 8, 8) > 0.7).float()
    monai = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")(logits, mask).flatten()
    torch.testing.assert_close(soft_dice_loss(logits, mask), monai)


def test_with_one_positive_it_is_cross_entropy() -> None:
    torch.manual_seed(0)
    similarity = torch.randn(5, 5)
    eye, every = torch.eye(5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool)
    torch.testing.assert_close(
        multi_positive(similarity, eye, every), torch.nn.functional.cross_entropy(similarity, torch.arange(5))
    )  # fmt: skip


def test_matched_pairs_cost_less_than_mismatched_ones() -> None:
    rows = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    scale = torch.tensor(2.0)
    assert image_text(rows, rows, same, scale) < image_text(rows, rows.roll(1, 0), same, scale)


def test_patches_of_the_same_volume_are_no_negatives() -> None:
    """With a single volume there is nothing to tell apart: every patch has only its positive, and the loss is zero."""
    torch.manual_seed(0)
    features = torch.randn(2, 9, 4)
    assert float(neighbouring_patches(features, (1, 3, 3), torch.tensor([0, 0]), 0.1)) == pytest.approx(0, abs=1e-5)
    assert float(neighbouring_patches(features, (1, 3, 3), torch.tensor([0, 1]), 0.1)) > 0.1
