"""Image decoder: conditional flow matching on pixels (Lipman et al., arXiv:2210.02747), one network for images and masks.

The network predicts the clean target, from which the velocity ``(y_t - y_0) / t`` on the path of :mod:`model_core.flow` follows. At
t = 1 the optimal prediction is the conditional mean: a single step returns the estimate with the least squared error, several steps
return a sample. A reconstruction is refined first: the network sees its own data-consistent estimate in place of the image that it
starts from, as iterative reconstruction does, and as it does in half of its training (self-conditioning, arXiv:2208.04202).

The target of an image is its residual to the input in units of ``residual_scale``; that of a mask is analog bits, -1 and +1 (Chen
et al., arXiv:2208.04202).

Shape letters: K draws, B samples, D slices, S = B * D slices of all samples, H rows, W columns, c channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from model_core.config import OmniMRIConfig
from model_core.flow import Sampler, integrate, sample_noise
from model_core.heads.modulated import TimeEmbedding, ZeroConv2d, ZeroLinear
from model_core.mri_physics.sense import KSpaceMeasurement, enforce_data_consistency
from model_core.targets import TARGET_IMAGE, TARGET_MASK


@dataclass(frozen=True)
class Conditions:
    """Inputs from which an image is decoded.

    Attributes:
        pixel_values_B1DHW: the input image (for reconstruction: what it starts from).
        features: Swin features of the input image, every level.
        query_BQ: hidden state of the ``<image>`` or ``<seg>`` token.
        kind_B: TARGET_IMAGE | TARGET_MASK.
        measured: k-space with which a reconstruction must be consistent.
    """

    pixel_values_B1DHW: Tensor
    features: list[Tensor]
    query_BQ: Tensor
    kind_B: Tensor
    measured: KSpaceMeasurement

    @property
    def is_reconstruction_B(self) -> Tensor:
        """Samples whose target is an image with a measurement, bool."""
        return (self.kind_B == TARGET_IMAGE) & self.measured.sampling_BDHW.flatten(1).any(1)

    def rows(self, rows_R: Tensor) -> Conditions:
        """Return the conditions of some samples, given by indices."""
        features, measured = [level[rows_R] for level in self.features], self.measured.rows(rows_R)
        return Conditions(self.pixel_values_B1DHW[rows_R], features, self.query_BQ[rows_R], self.kind_B[rows_R], measured)

    def slices(self, first: int, stop: int) -> Conditions:
        """Return the conditions of the slices from ``first`` to before ``stop``."""
        maps = self.measured.coil_maps_BCDHW
        measured = KSpaceMeasurement(
            self.measured.kspace_BCDHW[:, :, first:stop],
            self.measured.sampling_BDHW[:, first:stop],
            None if maps is None else maps[:, :, first:stop],
        )
        pixels, features = self.pixel_values_B1DHW[:, :, first:stop], [level[:, first:stop] for level in self.features]
        return Conditions(pixels, features, self.query_BQ, self.kind_B, measured)

    def chunks(self) -> Iterator[tuple[slice, Conditions]]:
        """Yield the conditions of at most :data:`DECODED_VOXELS` at a time, each with its range of slices."""
        samples, _, depth, height, width = self.pixel_values_B1DHW.shape
        at_once = max(DECODED_VOXELS // (samples * height * width), 1)
        for first in range(0, depth, at_once):
            yield slice(first, first + at_once), self.slices(first, first + at_once)


DECODED_VOXELS = 2**21
"""Voxels that are decoded at once when images are sampled, 32 slices of 256 x 256 pixels: memory does not grow with the volume."""


class _Block(GradientCheckpointingLayer):
    """Residual convolutions with a norm that the condition modulates."""

    def __init__(self, channels_in: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(min(8, channels_in), channels_in)
        self.convolution1 = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)  # the norm that follows removes a bias
        self.norm2 = nn.GroupNorm(min(8, channels), channels)
        self.convolution2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = ZeroLinear(condition, 2 * channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if channels_in != channels else nn.Identity()

    def forward(self, x_ScHW: Tensor, condition_Sk: Tensor) -> Tensor:
        scale, shift = self.modulation(condition_Sk)[..., None, None].chunk(2, 1)
        inner = self.convolution1(F.silu(self.norm1(x_ScHW)))
        return self.shortcut(x_ScHW) + self.convolution2(F.silu(self.norm2(inner) * (1 + scale) + shift))


class ImageDecoder(nn.Module):
    """UNet up-path over the Swin features, with a stem on the noisy target and the input image at full resolution.

    Slices of a volume are decoded independently of each other; information across slices comes from the 3-D encoder.
    """

    def __init__(self, config: OmniMRIConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.residual_scale, self.refinements = config.residual_scale, config.refinements
        self.condition_size = 8 * width
        self.time = TimeEmbedding(self.condition_size)
        self.query = nn.Linear(config.hidden_size, self.condition_size)
        self.kind = nn.Embedding(3, self.condition_size)
        steps = config.vision_patch.bit_length() - 1  # halvings between full resolution and the first Swin level
        stem = [width * 2**step for step in range(steps)]
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.stem_blocks = nn.ModuleList(_Block(channels, channels, self.condition_size) for channels in stem)
        self.stem_down = nn.ModuleList(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1) for c in stem)
        level_channels = [config.level_width(level) for level in range(config.levels)]
        self.up_channels = [min(channels, 8 * width) for channels in level_channels]
        self.bottleneck = nn.Conv2d(level_channels[-1], self.up_channels[-1], 1)
        self.bottleneck_block = _Block(self.up_channels[-1], self.up_channels[-1], self.condition_size)
        self.skips = nn.ModuleList(
            _Block(self.up_channels[level + 1] + level_channels[level], self.up_channels[level], self.condition_size)
            for level in range(config.levels - 1)
        )
        coarsest = self.up_channels[0] + 2 * stem[-1]
        incoming = [coarsest, *(channels for channels in reversed(stem[1:]))]
        # Channels are reduced before upsampling, where a convolution costs a quarter.
        self.reduce = nn.ModuleList(
            nn.Conv2d(channels_in, channels, 1) for channels_in, channels in zip(incoming, reversed(stem), strict=True)
        )
        self.full = nn.ModuleList(_Block(2 * channels, channels, self.condition_size) for channels in reversed(stem))
        self.output = ZeroConv2d(width, 2, 3, padding=1)
        self.selection = ZeroLinear(self.condition_size, width + 1)
        self.structure_query = nn.Linear(config.hidden_size, width + 1)

    def forward(self, noisy_B1DHW: Tensor, time_B: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Predict the clean target, and return the features of every pixel that it is predicted from.

        The logit of a mask is that of a convolution plus a linear function of the pixel's features which the query determines: what
        the features distinguish for one structure serves all others (MaskFormer, arXiv:2107.06278).

        At t = 1 the noise says nothing about the target, and the network sees zeros in its place: it need not learn to ignore an
        input of larger variance than the image, and a one-step prediction depends on no random number.

        Returns:
            (B, 1, D, H, W) float32: the residual of images, the logits of masks; and (B, c, D, H, W) features.
        """
        dtype, depth = self.stem.weight.dtype, noisy_B1DHW.shape[2]
        condition = self.time(time_B) + self.query(conditions.query_BQ.to(dtype)) + self.kind(conditions.kind_B)
        condition_Sk = F.silu(condition).repeat_interleave(depth, 0)
        noisy_B1DHW = noisy_B1DHW * (time_B < 1).view(-1, 1, 1, 1, 1)
        images = torch.cat([noisy_B1DHW, conditions.pixel_values_B1DHW], 1).transpose(1, 2).flatten(0, 1)
        x = self.stem(images.to(dtype).contiguous(memory_format=torch.channels_last))
        skips = []
        for block, down in zip(self.stem_blocks, self.stem_down, strict=True):
            x = block(x, condition_Sk)
            skips.append(x)
            x = down(x)
        x = torch.cat([self._from_features(conditions.features, condition_Sk), x], 1)
        for reduce, block, skip in zip(self.reduce, self.full, reversed(skips), strict=True):
            x = F.interpolate(reduce(x), scale_factor=2, mode="nearest")
            x = block(torch.cat([x, skip], 1), condition_Sk)
        x = F.silu(x)
        weight_Sc, bias_S1 = self.selection(condition_Sk).split([x.shape[1], 1], -1)
        selected = torch.einsum("schw,sc->shw", x, weight_Sc)[:, None] + bias_S1[..., None, None]
        out = self.output(x)
        out_B2DHW = torch.cat([out[:, :1], out[:, 1:] + selected], 1).unflatten(0, (-1, depth)).transpose(1, 2).float()
        is_mask = (conditions.kind_B == TARGET_MASK).view(-1, 1, 1, 1, 1)
        return torch.where(is_mask, out_B2DHW[:, 1:], out_B2DHW[:, :1]), x.unflatten(0, (-1, depth)).transpose(1, 2)

    def structure_logits(self, features_BcDHW: Tensor, names_Sh: Tensor) -> Tensor:
        """Return the logit of every structure in every pixel, relative to "none of them", (B, S, D, H, W) float32.

        Args:
            features_BcDHW: that :meth:`forward` returns.
            names_Sh: embedded names of the structures.
        """
        weight_Sc, bias_S = self.structure_query(names_Sh).split([features_BcDHW.shape[1], 1], -1)
        return (torch.einsum("bcdhw,sc->bsdhw", features_BcDHW, weight_Sc) + bias_S[None, :, :, None, None]).float()

    def _from_features(self, features: list[Tensor], condition_Sk: Tensor) -> Tensor:
        """Run the up-path from the coarsest Swin level to the first, (S, c, H / patch, W / patch)."""
        maps = [level.flatten(0, 1).permute(0, 3, 1, 2) for level in features]
        x = self.bottleneck_block(self.bottleneck(maps[-1]), condition_Sk)
        for block, skip in zip(reversed(self.skips), reversed(maps[:-1]), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = block(torch.cat([x, skip], 1), condition_Sk)
        return x

    def encode_target(self, target_B1DHW: Tensor, conditions: Conditions) -> Tensor:
        """Return the clean target in the space of the flow."""
        residual = (target_B1DHW - conditions.pixel_values_B1DHW) / self.residual_scale
        return torch.where((conditions.kind_B == TARGET_MASK).view(-1, 1, 1, 1, 1), 2 * target_B1DHW - 1, residual)

    def predicted_magnitude(self, residual_B1DHW: Tensor, pixel_values_B1DHW: Tensor) -> Tensor:
        """Return the image of a residual. No magnitude is negative: a predicted one is 0.

        Data consistency would make a signal of the opposite phase of it, and the absolute value a bright pixel. Networks predict
        such pixels outside of the body, in the same places in all images.
        """
        return (pixel_values_B1DHW + self.residual_scale * residual_B1DHW).clamp(min=0)

    def decode_image(self, residual_B1DHW: Tensor, pixel_values_B1DHW: Tensor, measured: KSpaceMeasurement) -> Tensor:
        """Return the magnitude image of a residual, consistent with the measured k-space of samples that have one."""
        magnitude = self.predicted_magnitude(residual_B1DHW, pixel_values_B1DHW)
        return enforce_data_consistency(magnitude.squeeze(1), measured)[:, None]

    @torch.no_grad()
    def refine(self, conditions: Conditions, is_refined_B: Tensor) -> Conditions:
        """Return the conditions with the estimate of one step in place of the image that the chosen samples start from.

        The network runs on one sample at least: with ZeRO-3 every process must gather the same weights.
        """
        rows = is_refined_B.nonzero().squeeze(-1)
        chosen = conditions.rows(rows if len(rows) else rows.new_zeros(1))
        pixels = chosen.pixel_values_B1DHW
        residual, _ = self(torch.zeros_like(pixels), torch.ones(len(pixels), device=pixels.device), chosen)
        estimate = self.decode_image(residual, pixels, chosen.measured)[: len(rows)]
        return replace(conditions, pixel_values_B1DHW=conditions.pixel_values_B1DHW.index_copy(0, rows, estimate.to(pixels.dtype)))

    @torch.no_grad()
    def sample(
        self, conditions: Conditions, seeds: Sequence[int], steps: int = 1, sampler: Sampler = "euler", draws: int = 1
    ) -> Tensor:
        """Draw images or mask probabilities, (K, B, 1, D, H, W) float32, :data:`DECODED_VOXELS` at a time.

        Reconstructions are refined first, if the network has learned it.

        Args:
            seeds: one per sample, on which alone its noise depends.
        """
        noise = sample_noise(seeds, conditions.pixel_values_B1DHW.shape[1:], draws)
        parts = []
        for slices, chunk in conditions.chunks():
            if self.refinements and (is_refined_B := chunk.is_reconstruction_B).any():
                for _ in range(self.refinements):
                    chunk = self.refine(chunk, is_refined_B)
            parts.append(torch.stack([self._draw(chunk, one[:, :, slices], steps, sampler) for one in noise]))
        return torch.cat(parts, 3)

    @torch.no_grad()
    def show(self, conditions: Conditions, names_Sh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask (B, D, H, W) of one step at t = 1, and :meth:`structure_logits`, :data:`DECODED_VOXELS` at a time."""
        masks, logits = [], []
        for _, chunk in conditions.chunks():
            pixels = chunk.pixel_values_B1DHW
            mask, features = self(torch.zeros_like(pixels), torch.ones(len(pixels), device=pixels.device), chunk)
            masks.append(mask.sigmoid()[:, 0])
            logits.append(self.structure_logits(features, names_Sh))
        return torch.cat(masks, 1), torch.cat(logits, 2)

    def _draw(self, conditions: Conditions, noise_B1DHW: Tensor, steps: int, sampler: Sampler) -> Tensor:
        """Return one draw of images or mask probabilities, (B, 1, D, H, W)."""
        is_mask = (conditions.kind_B == TARGET_MASK).view(-1, 1, 1, 1, 1)
        pixels = conditions.pixel_values_B1DHW

        def velocity(state: Tensor, time: float) -> Tensor:
            clean, _ = self(state, torch.full((len(state),), time, device=state.device), conditions)
            residual = (self.decode_image(clean, pixels, conditions.measured) - pixels) / self.residual_scale
            return (state - torch.where(is_mask, 2 * clean.sigmoid() - 1, residual)) / time

        target = integrate(velocity, noise_B1DHW.to(pixels.device), steps, sampler)
        probability, image = (target + 1) / 2, pixels + self.residual_scale * target
        return torch.where(is_mask, probability.clamp(0, 1), image.clamp(min=0))
