"""Swin encoder for slices and volumes: Video Swin (Liu et al., arXiv:2106.13230) with one-slice patches and merging in plane only.

A slice is a volume of depth 1, and the same weights serve both. All sizes are accepted: an image is zero-padded at its far end to
whole patches, an odd feature map is padded before merging, and a map that windows do not divide is padded with the qkv projection
of zeros.

Shape letters: B samples, D slices, H rows, W columns (of voxels or tokens), c channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from kernels.window_attention import window_attention
from kernels.window_attention.geometry import Triple, bias_table_rows
from model_core.config import OmniMRIConfig

SLAB_VOXELS = 2**23
"""Largest volume that is encoded whole without gradients: 128 slices of 256 x 256 pixels."""


class WindowAttention(nn.Module):
    """Multi-head attention in (shifted) windows with relative-position bias."""

    def __init__(self, width: int, heads: int, window: Triple, shift: Triple) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros(bias_table_rows(window), heads))

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """Map (B, D, H, W, c) to the same shape."""
        qkv = self.qkv(x_BDHWc).unflatten(-1, (3, self.heads, -1))
        pad = self.qkv.bias.view(3, self.heads, -1)
        return self.proj(window_attention(qkv, self.bias_table, self.window, self.shift, pad_qkv=pad))


class SwinBlock(GradientCheckpointingLayer):
    """Pre-norm block: window attention, then a two-layer perceptron."""

    def __init__(self, width: int, heads: int, window: Triple, shifted: bool) -> None:
        super().__init__()
        shift = (window[0] // 2, window[1] // 2, window[2] // 2) if shifted else (0, 0, 0)
        self.norm1 = nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, window, shift)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """Map (B, D, H, W, c) to the same shape."""
        x = x_BDHWc + self.attention(self.norm1(x_BDHWc))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Halve height and width, double the channels; an odd side is zero-padded, as in Swin."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BDHWc: Tensor) -> Tensor:
        """Map (B, D, H, W, c) to (B, D, H / 2, W / 2, 2c), sizes rounded up."""
        height, width = x_BDHWc.shape[2:4]
        x = F.pad(x_BDHWc, (0, 0, 0, width % 2, 0, height % 2))
        quarters = [x[:, :, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(quarters, -1)))


class PatchEmbedding(nn.Module):
    """Embedding of one-slice patches from the intensity and its sine and cosine codes.

    Two strided convolutions without overlap and a nonlinearity between them: a patch depends on its own pixels only, as masked
    image modeling requires. The codes have the frequencies pi, 2 pi, 4 pi ..., where an intensity of 1 is the 99.5th percentile.
    They keep absolute intensities apart, which the norms after a linear embedding do not (NeRF, arXiv:2003.08934, section 5.1).
    """

    def __init__(self, width: int, patch: int, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        inner = max(patch // 2, 1)
        self.inner = nn.Conv3d(1 + 2 * frequencies, width, (1, inner, inner), stride=(1, inner, inner))
        self.outer = nn.Conv3d(width, width, (1, patch // inner, patch // inner), stride=(1, patch // inner, patch // inner))

    def forward(self, pixels_B1DHW: Tensor) -> Tensor:
        """Map (B, 1, D, H, W) of any dtype to (B, D, H / patch, W / patch, c) in the dtype of the weights."""
        angles = [math.pi * 2**step * pixels_B1DHW.float() for step in range(self.frequencies)]
        codes = [code for angle in angles for code in (angle.sin(), angle.cos())]
        x = torch.cat([pixels_B1DHW.float(), *codes], 1).to(self.inner.weight.dtype)
        return self.outer(F.gelu(self.inner(x))).permute(0, 2, 3, 4, 1)


class SwinEncoder(nn.Module):
    """Patch embedding, then levels of Swin blocks with patch merging between them.

    Attributes:
        margin: slices beside a slab on which its features depend: windows that end at the edge of a slab differ from those of the
            whole volume, and every further block passes the difference on by one window.
    """

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        patch = config.vision_patch
        self.patch = patch
        self.patch_embedding = PatchEmbedding(config.vision_width, patch, config.intensity_frequencies)
        self.mask_token = nn.Parameter(torch.zeros(config.vision_width))
        self.levels = nn.ModuleList(
            nn.ModuleList(
                SwinBlock(config.level_width(level), config.vision_heads[level], config.vision_window, shifted=block % 2 == 1)
                for block in range(depth)
            )
            for level, depth in enumerate(config.vision_depths)
        )
        self.merging = nn.ModuleList(PatchMerging(config.level_width(level)) for level in range(config.levels - 1))
        self.norms = nn.ModuleList(nn.LayerNorm(config.level_width(level)) for level in range(config.levels))
        self.window_depth = config.vision_window[0]
        self.margin = _slab_margin(config)

    def forward(self, pixel_values_B1DHW: Tensor, masked_BDHW: Tensor | None = None) -> list[Tensor]:
        """Return the normalized features of every level, (B, D, H / 2**l / patch, W / 2**l / patch, C * 2**l), sizes rounded up.

        Args:
            pixel_values_B1DHW: image or volume, any dtype; computed in the dtype of the weights.
            masked_BDHW: bool on the grid of patches, True = masked (masked image modeling).
        """
        height, width = pixel_values_B1DHW.shape[-2:]
        pixels = F.pad(pixel_values_B1DHW, (0, -width % self.patch, 0, -height % self.patch))
        x = self.patch_embedding(pixels)
        if masked_BDHW is not None:
            x = torch.where(masked_BDHW[..., None], self.mask_token.to(x.dtype), x)
        features = []
        for level, blocks in enumerate(self.levels):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            features.append(self.norms[level](x))
            if level < len(self.merging):
                x = self.merging[level](x)
        return features

    @torch.no_grad()
    def encode_in_slabs(self, pixel_values_B1DHW: Tensor, voxels: int = SLAB_VOXELS) -> list[Tensor]:
        """Return what :meth:`forward` returns, up to rounding, in bounded memory: slab by slab along the slices.

        Slabs begin where windows begin, and are encoded with :attr:`margin` slices on either side, whose features are discarded.

        Args:
            voxels: largest number of voxels of a slab without its margins; a volume that is no larger is encoded whole.
        """
        samples, _, depth, height, width = pixel_values_B1DHW.shape
        windows = max(voxels // (samples * height * width) // self.window_depth, 1)
        slab = windows * self.window_depth
        if depth <= slab:
            return list(self(pixel_values_B1DHW))
        parts: list[list[Tensor]] = []
        for start in range(0, depth, slab):
            first, stop = max(start - self.margin, 0), min(start + slab, depth)
            levels = self(pixel_values_B1DHW[:, :, first : stop + self.margin])
            parts.append([level[:, start - first : stop - first].clone() for level in levels])
        return [torch.cat(levels, 1) for levels in zip(*parts, strict=True)]


def _slab_margin(config: OmniMRIConfig) -> int:
    """Return the number of slices from the edge of a slab whose features may differ from those of the whole volume."""
    window = config.vision_window[0]
    shift = max(window // 2, window - window // 2)
    differing = 0
    for blocks in config.vision_depths:
        for block in range(blocks):
            edge = shift if block % 2 else 0
            differing = edge + -(-max(differing - edge, 0) // window) * window
    return -(-differing // window) * window
