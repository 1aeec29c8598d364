"""The encoder agrees with MONAI's Swin in 2-D and 3-D, with one set of weights and for all sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2, SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn

from model_core import OmniMRIConfig
from model_core.swin import SwinBlock, SwinEncoder

WINDOW = (4, 3, 3)


def _encoder(window: tuple[int, int, int] = WINDOW) -> SwinEncoder:
    torch.manual_seed(0)
    config = OmniMRIConfig(vision_width=12, vision_depths=(2, 2, 2, 1), vision_heads=(1, 2, 4, 4), vision_window=window)
    encoder = SwinEncoder(config).eval()
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bias") and "norms" not in name:
            nn.init.normal_(parameter, std=0.1)
    return encoder


def _copy_block(ours: SwinBlock, theirs: SwinTransformerBlock, table: Tensor) -> None:
    pairs = {
        theirs.norm1: ours.norm1,
        theirs.norm2: ours.norm2,
        theirs.attn.qkv: ours.attention.qkv,
        theirs.attn.proj: ours.attention.proj,
        theirs.mlp.linear1: ours.mlp[0],
        theirs.mlp.linear2: ours.mlp[2],
    }
    for target, source in pairs.items():
        target.load_state_dict(source.state_dict())
    theirs.attn.relative_position_bias_table.data.copy_(table)


class _SlicePatches(nn.Module):
    """Our patch embedding of a slice, in the axes of MONAI: theirs is linear in the intensity."""

    def __init__(self, encoder: SwinEncoder) -> None:
        super().__init__()
        self.embedding, self.patch = encoder.patch_embedding, encoder.patch

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % self.patch, 0, -height % self.patch))
        return self.embedding(padded[:, :, None])[:, 0].permute(0, 3, 1, 2)


def _in_plane(table: Tensor) -> Tensor:
    """Return the rows of a bias table that tokens of one slice use."""
    return table.view(2 * WINDOW[0] - 1, -1, table.shape[-1])[WINDOW[0] - 1]


@pytest.mark.parametrize("size", [(96, 96), (100, 76), (97, 81)], ids=str)
def test_a_slice_has_the_features_of_monais_plane_network(size: tuple[int, int]) -> None:
    """Sizes: 96 is divisible by the windows; 100 x 76 gives maps that windows do not divide and odd maps to merge; 97 x 81 gives
    incomplete patches. No map is smaller than the window, because MONAI then uses table rows of other offsets (see below).

    The window has a depth of 4; a slice uses the middle of its bias table. MONAI normalizes without weights, as ours are initially.
    """
    ours = _encoder()
    theirs = SwinTransformer(1, 12, WINDOW[1:], (4, 4), (2, 2, 2, 1), (1, 2, 4, 4), spatial_dims=2, downsample="mergingv2").eval()
    theirs.patch_embed = _SlicePatches(ours)
    their_features: list[Tensor] = []
    for level, layers in enumerate((theirs.layers1, theirs.layers2, theirs.layers3, theirs.layers4)):
        for block, other in zip(ours.levels[level], layers[0].blocks, strict=True):
            _copy_block(block, other, _in_plane(block.attention.bias_table))
        if level < len(ours.merging):
            layers[0].downsample.load_state_dict(ours.merging[level].state_dict())
        layers[0].blocks[-1].register_forward_hook(lambda module, inputs, output: their_features.append(output))
    image = torch.rand(2, 1, *size)
    with torch.no_grad():
        theirs(image)
        features = ours(image[:, :, None])
    assert [level.shape[2:4] for level in features] == [level.shape[1:3] for level in their_features]
    for level, other in zip(features, their_features, strict=True):
        torch.testing.assert_close(level[:, 0], F.layer_norm(other, other.shape[-1:]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(8, 12, 18), (7, 10, 13), (3, 12, 13)], ids=str)
def test_a_level_of_a_volume_is_monais(size: tuple[int, int, int]) -> None:
    """Sizes: whole windows; padding on every axis; a volume thinner than the window, which is then not shifted."""
    level = _encoder().levels[1]
    theirs = BasicLayer(24, 2, 2, WINDOW, [0.0, 0.0], qkv_bias=True).eval()
    for block, other in zip(level, theirs.blocks, strict=True):
        _copy_block(block, other, block.attention.bias_table)
    x = torch.randn(2, *size, 24)
    with torch.no_grad():
        expected = theirs(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)
        for block in level:
            x = block(x)
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_a_window_larger_than_the_map_is_a_smaller_window() -> None:
    """Offsets keep their rows of the table. MONAI uses the first rows of the table, which belong to other offsets."""
    block = _encoder((4, 6, 6)).levels[1][1]
    smaller = SwinBlock(24, 2, (3, 4, 5), shifted=False)
    smaller.load_state_dict({**block.state_dict(), "attention.bias_table": smaller.attention.bias_table})
    table = block.attention.bias_table.data.view(7, 11, 11, 2)[1:6, 2:9, 1:10]
    smaller.attention.bias_table.data.copy_(table.reshape(-1, 2))
    x = torch.randn(2, 3, 4, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(block(x), smaller(x), atol=1e-5, rtol=1e-5)


def test_merging_is_monais() -> None:
    merging, theirs = _encoder().merging[0], PatchMergingV2(12, spatial_dims=2)
    theirs.load_state_dict(merging.state_dict())
    x = torch.randn(2, 5, 7, 9, 12)
    with torch.no_grad():
        expected = torch.stack([theirs(x[:, index]) for index in range(5)], 1)
        torch.testing.assert_close(merging(x), expected, atol=1e-6, rtol=1e-6)


def test_slices_of_a_volume_one_slice_deep_windows_are_slices() -> None:
    """With windows of depth 1 slices do not exchange information: a volume has the features of its slices."""
    encoder, volume = _encoder((1, 6, 6)), torch.rand(1, 1, 5, 50, 62)
    with torch.no_grad():
        volume_features, slice_features = encoder(volume), encoder(volume.transpose(0, 2))
    for level, other in zip(volume_features, slice_features, strict=True):
        torch.testing.assert_close(level[0], other[:, 0], atol=1e-5, rtol=1e-5)


def test_a_patch_depends_on_its_own_pixels_only() -> None:
    """Masked image modeling hides patches after the embedding: no neighbor may contain their pixels."""
    embedding = _encoder().patch_embedding
    image = torch.rand(1, 1, 2, 16, 16)
    other = image.clone()
    other[..., 1, 4:8, 8:12] += 0.3
    changed = (embedding(image) - embedding(other)).abs().sum(-1)[0] > 1e-6
    assert changed.nonzero().tolist() == [[1, 1, 2]]


def test_intensities_stay_apart_after_the_norms() -> None:
    """A linear embedding maps flat images to nearly one direction: their cosine is above 0.97 (0.6 against 1.2)."""

    def cosine(frequencies: int) -> float:
        torch.manual_seed(0)
        encoder = SwinEncoder(OmniMRIConfig(intensity_frequencies=frequencies)).eval()
        images = torch.stack([torch.full((1, 1, 96, 96), level) for level in (0.6, 1.2)])
        with torch.no_grad():
            first, second = encoder(images)[2][:, 0, 3, 3]
        return float(F.cosine_similarity(first, second, dim=0))

    assert cosine(3) < 0.9 and cosine(0) > cosine(3)


@pytest.mark.parametrize(("depth", "slices"), [(40, 4), (41, 8), (38, 12)])
def test_slabs_have_the_features_of_the_whole_volume(depth: int, slices: int) -> None:
    """At every level and in every slice, for slabs of one window and more, and a last slab that no window divides."""
    encoder, volume = _encoder(), torch.rand(1, 1, depth, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = encoder(volume)
        in_slabs = encoder.encode_in_slabs(volume, voxels=slices * 24 * 24)
    for expected, level in zip(whole, in_slabs, strict=True):
        torch.testing.assert_close(level, expected, atol=1e-4, rtol=1e-4)


def test_slabs_with_smaller_margins_differ() -> None:
    """The test above would see it."""
    encoder, volume = _encoder(), torch.rand(1, 1, 40, 24, 24, generator=torch.Generator().manual_seed(0))
    encoder.margin -= 2 * WINDOW[0]
    with torch.no_grad():
        last, in_slabs = encoder(volume)[-1], encoder.encode_in_slabs(volume, voxels=16 * 24 * 24)[-1]
    assert float((in_slabs - last).abs().max()) > 5e-4
