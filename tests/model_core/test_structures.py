"""The auxiliary losses of label maps, beside MONAI's Dice loss and PyTorch's cross-entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import nn

from model_core import OmniMRIConfig
from model_core.batch import IGNORE, StructureLabels
from model_core.heads.connector import Connector, position_code
from model_core.heads.image_decoder import ImageDecoder
from model_core.heads.structures import PRESENT, SMOOTH, StructureHead, embed_names, pixel_losses

SIZE, STRUCTURES = 32, 3
CONFIG = OmniMRIConfig.from_preset("debug", 300)


@pytest.fixture
def head() -> StructureHead:
    torch.manual_seed(0)
    return StructureHead(CONFIG)


def _labels(listed: list[list[bool]]) -> StructureLabels:
    torch.manual_seed(1)
    structures = torch.randint(0, STRUCTURES + 1, (len(listed), 1, SIZE, SIZE))
    names = torch.tensor([[11, 12], [13, 0], [14, 15]])
    return StructureLabels(structures, torch.tensor(listed), names)


def test_the_pixel_loss_is_cross_entropy_plus_monais_dice_loss() -> None:
    """All structures are shown; the background has the logit zero, whatever the features are."""
    labels = _labels([[True] * STRUCTURES])
    own = torch.randn(1, STRUCTURES, 1, SIZE, SIZE)
    logits = torch.cat([torch.zeros(1, 1, SIZE, SIZE), own[:, :, 0]], 1)
    truth = labels.structures_BDHW[:, 0]
    dice = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    sizes = torch.bincount(truth.flatten(), minlength=STRUCTURES + 1)
    weight = (sizes.max() / sizes).sqrt()
    expected = F.cross_entropy(logits, truth, weight) + dice(logits, truth[:, None])
    torch.testing.assert_close(pixel_losses(own, labels)[0], expected, atol=1e-5, rtol=1e-5)


def test_what_a_label_map_does_not_list_has_no_influence(head: StructureHead) -> None:
    """Another dataset's structure is neither expected nor forbidden, and a sample without a label map teaches nothing."""
    labels = _labels([[True, False, True], [False] * STRUCTURES])
    structures = labels.structures_BDHW.clone()
    structures[0][structures[0] == 2] = 0
    structures[1] = IGNORE
    labels = StructureLabels(structures, labels.listed_BS, labels.names_SL)
    decoder = ImageDecoder(CONFIG)
    features, hidden = torch.randn(2, CONFIG.decoder_width, 1, SIZE, SIZE), torch.randn(2, 16, CONFIG.hidden_size)
    names = torch.randn(STRUCTURES, CONFIG.hidden_size)
    grid = CONFIG.image_grid(1, SIZE, SIZE)
    tokens = grid[1] * grid[2]
    losses = (
        pixel_losses(decoder.structure_logits(features, names), labels),
        head.token_losses(hidden[:, :tokens], names, labels, grid),
    )
    names[1] += 5
    others = (
        pixel_losses(decoder.structure_logits(features, names), labels),
        head.token_losses(hidden[:, :tokens], names, labels, grid),
    )
    for loss, other in zip(losses, others, strict=True):
        assert loss[0] > 0 and loss[1] == 0
        torch.testing.assert_close(loss, other)


@pytest.mark.parametrize("depth", [1, 6])
def test_a_token_shows_what_its_pixels_show(head: StructureHead, depth: int) -> None:
    structures = torch.zeros(1, depth, SIZE, SIZE, dtype=torch.long)
    structures[0, depth - 1, :8, 8:16] = 2
    labels = StructureLabels(structures, torch.ones(1, STRUCTURES, dtype=torch.bool), torch.ones(STRUCTURES, 1, dtype=torch.long))
    grid = CONFIG.image_grid(depth, SIZE, SIZE)
    truth = head._token_truth(labels, grid).view(*grid, STRUCTURES)
    assert truth.nonzero().tolist() == [[grid[0] - 1, 0, 1, 1]] and 0 < PRESENT < 1


def test_a_name_is_the_mean_of_its_tokens() -> None:
    embed = nn.Embedding(300, CONFIG.hidden_size)
    names = embed_names(embed, torch.tensor([[11, 12], [13, CONFIG.pad_token_id]]), CONFIG.pad_token_id)
    torch.testing.assert_close(names[1], F.rms_norm(embed.weight[13], (CONFIG.hidden_size,)))
    torch.testing.assert_close(names[0], F.rms_norm(embed.weight[11:13].mean(0), (CONFIG.hidden_size,)))


def test_every_cell_of_a_grid_has_its_own_position() -> None:
    code = position_code((3, 4, 5), 8, torch.device("cpu")).flatten(0, 2)
    distance = torch.cdist(code, code) + torch.eye(len(code)) * 10
    assert code.shape == (60, 48) and distance.min() > 0.1


def test_equal_patches_at_different_places_are_different_tokens() -> None:
    """In a slice and in a volume; without the code they are equal."""
    for frequencies, differ in ((8, True), (0, False)):
        config = OmniMRIConfig.from_preset("debug", 300, position_frequencies=frequencies)
        torch.manual_seed(0)
        connector = Connector(config)
        for depth in (1, 8):
            features = [torch.ones(1, depth, 4, 4, config.level_width(level)) for level in range(config.levels)]
            tokens = connector(features)[0]
            assert ((tokens - tokens[:1]).abs().max().item() > 1e-3) == differ
