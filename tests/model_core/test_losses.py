"""Losses agree with the libraries that define them, or with closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from monai.losses import ContrastiveLoss, DiceLoss
from skimage.metrics import structural_similarity
from transformers.models.clip.modeling_clip import image_text_contrastive_loss as clip_loss

from model_core.losses.contrastive import (
    image_text_loss,
    multi_positive_loss,
    neighboring_patches_loss,
    standardize,
    volume_discrimination_loss,
)
from model_core.losses.pixels import soft_dice_loss, structural_dissimilarity
from model_core.losses.reduction import Step


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


def test_with_one_positive_the_loss_is_cross_entropy() -> None:
    torch.manual_seed(0)
    similarity = torch.randn(5, 5)
    eye, candidates = torch.eye(5, dtype=torch.bool), torch.ones(5, 5, dtype=torch.bool)
    torch.testing.assert_close(
        multi_positive_loss(similarity, eye, candidates), torch.nn.functional.cross_entropy(similarity, torch.arange(5))
    )


def test_with_two_views_of_each_image_the_loss_is_the_contrastive_loss_of_monai() -> None:
    """The positive of a view is the other view of its image; candidates are all but itself (SimCLR)."""
    torch.manual_seed(0)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    group = torch.arange(4).repeat(2)
    ours = volume_discrimination_loss(torch.cat([first, second]), group, 0.5)
    torch.testing.assert_close(ours, ContrastiveLoss(temperature=0.5)(first, second))


def test_several_positives_are_averaged_as_the_paper_says() -> None:
    """SupCon, eq. 2, anchor by anchor; an anchor without a positive is excluded."""
    torch.manual_seed(0)
    rows, group = F.normalize(torch.randn(6, 5), dim=-1), [0, 0, 0, 1, 1, 2]
    losses = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        denominator = sum(math.exp(float(rows[i] @ rows[j]) / 0.2) for j in others)
        positives = [j for j in others if group[j] == group[i]]
        if positives:
            losses.append(
                -sum(math.log(math.exp(float(rows[i] @ rows[p]) / 0.2) / denominator) for p in positives) / len(positives)
            )
    assert float(volume_discrimination_loss(rows, torch.tensor(group), 0.2)) == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_distinct_pairs_have_the_clip_loss_of_transformers() -> None:
    torch.manual_seed(0)
    images, texts, scale = torch.randn(5, 8), torch.randn(5, 8), torch.tensor([2.6592])
    ours = image_text_loss(images, texts, torch.eye(5, dtype=torch.bool), scale)
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T * scale.exp()
    torch.testing.assert_close(ours, clip_loss(similarity))


def test_patches_have_their_right_neighbor_as_positive() -> None:
    """Two volumes of one row of three patches: InfoNCE term by term."""
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4)
    rows = F.normalize(features, dim=-1)
    losses = []
    for volume in (0, 1):
        for column in (0, 1):
            anchor, positive = rows[volume, column], rows[volume, column + 1]
            logits = torch.stack([anchor @ positive, *(rows[1 - volume, 1:] @ anchor)]) / 0.1
            losses.append(F.cross_entropy(logits[None], torch.tensor([0])))
    ours = neighboring_patches_loss(features, (1, 1, 3), torch.tensor([0, 1]), 0.1)
    torch.testing.assert_close(ours, torch.stack(losses).mean())


def test_standardized_features_are_those_of_batch_norm() -> None:
    torch.manual_seed(0)
    rows = 3 + 0.1 * torch.randn(16, 4)
    torch.testing.assert_close(standardize(rows), torch.nn.BatchNorm1d(4, eps=1e-6, affine=False)(rows))


def test_a_mean_is_over_the_whole_step() -> None:
    """Two micro-batches of 1 and 3 tokens: their shares add up to the mean over all four."""
    step = Step.of([{"text": torch.tensor(1)}, {"text": torch.tensor(3)}])
    parts = [step.mean("text", torch.tensor(total)) for total in (2.0, 4.0)]
    assert float(sum(parts)) == 1.5 and float(step.part(torch.tensor(1.0))) == 0.5
    assert float(Step.of([{"text": torch.tensor(0)}]).mean("text", torch.tensor(0.0))) == 0


def test_matched_pairs_have_a_smaller_loss_than_mismatched_pairs() -> None:
    rows = torch.eye(4)
    same = torch.eye(4, dtype=torch.bool)
    scale = torch.tensor(2.0)
    assert image_text_loss(rows, rows, same, scale) < image_text_loss(rows, rows.roll(1, 0), same, scale)


def test_patches_of_the_same_volume_are_not_negatives() -> None:
    """With a single volume there are no negatives: every patch has only its positive, and the loss is zero."""
    torch.manual_seed(0)
    features = torch.randn(2, 9, 4)
    assert float(neighboring_patches_loss(features, (1, 3, 3), torch.tensor([0, 0]), 0.1)) == pytest.approx(0, abs=1e-5)
    assert float(neighboring_patches_loss(features, (1, 3, 3), torch.tensor([0, 1]), 0.1)) > 0.1
