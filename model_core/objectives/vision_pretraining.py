"""Stage 1: masked image modeling, contrast of neighboring patches, discrimination of volumes (paper section 4.1).

Shape letters: B samples, D slices, H rows, W columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import ImageBatch
from model_core.losses.contrastive import neighboring_patches_loss, standardize, volume_discrimination_loss
from model_core.losses.reduction import Step, gather_with_gradient
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration
from model_core.noise import Noise
from model_core.objectives.base import LossOutput, Objective, build_loss_output


class VisionPretraining(Objective):
    """Train the Swin encoder on images alone."""

    def __init__(self, model: OmniMRIForConditionalGeneration, temperature: float = 0.1) -> None:
        super().__init__(model)
        config = model.config
        self.temperature = temperature
        self.stride = config.vision_patch * 2**config.connector_level
        self.pixels = nn.Linear(config.level_width(config.connector_level), self.stride**2)
        self.patch_projection = nn.Linear(config.level_width(config.connector_level), 64)
        self.volume_projection = nn.Linear(config.level_width(config.levels - 1), 64)

    def modules_trained(self) -> list[nn.Module]:
        """Return the encoder and the heads of this stage."""
        return [self.model.vision, self.pixels, self.patch_projection, self.volume_projection]

    def restore(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mask random squares of images; return the masked images, and the images with the prediction in the masked squares."""
        hidden, restored = self._mask_and_restore(pixel_values_B1DHW, seed_B)
        masked_images = pixel_values_B1DHW * ~hidden[:, None]
        return masked_images, torch.where(hidden[:, None], restored[:, None], pixel_values_B1DHW)

    def _mask_and_restore(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the masked pixels (B, D, H, W) bool, and the prediction of all pixels (B, D, H, W), float32."""
        config = self.model.config
        masked = self._draw_mask(pixel_values_B1DHW, seed_B)
        features = self.model.vision(pixel_values_B1DHW, masked)
        pixels = self.pixels(features[config.connector_level]).float()
        restored = F.pixel_shuffle(pixels.flatten(0, 1).permute(0, 3, 1, 2), self.stride).unflatten(0, pixels.shape[:2])
        hidden = masked.repeat_interleave(config.vision_patch, 2).repeat_interleave(config.vision_patch, 3)
        return hidden, restored[:, :, 0]

    def _mask_units(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the squares of an image: rows, columns, and how many are masked (at least one, and not all)."""
        config = self.model.config
        rows, columns = height // config.mask_unit, width // config.mask_unit
        return rows, columns, min(max(round(rows * columns * config.mask_ratio), 1), rows * columns - 1)

    def counts(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Count the masked pixels."""
        samples, _, depth, height, width = batch.pixel_values_B1DHW.shape
        hidden = self._mask_units(height, width)[2] * self.model.config.mask_unit**2
        return {"masked_l1": torch.tensor(float(samples * depth * hidden), device=batch.pixel_values_B1DHW.device)}

    def passes(self, batch: ImageBatch) -> dict[str, float]:
        """Count two trained encoder passes per image: one masked, one whole."""
        return {"Swin encoder": 6 * len(batch.pixel_values_B1DHW)}

    def forward(self, batch: ImageBatch, step: Step | None = None) -> LossOutput:
        """Mask squares of every slice and reconstruct them; contrast patches and volumes of the unmasked images."""
        config, step = self.model.config, step or Step.of([self.counts(batch)])
        hidden, restored = self._mask_and_restore(batch.pixel_values_B1DHW, batch.seed_B)
        error = (restored - batch.pixel_values_B1DHW[:, 0].float()).abs()
        reconstruction = step.mean("masked_l1", (error * hidden).sum())
        features = self.model.vision(batch.pixel_values_B1DHW)
        level = features[config.connector_level]
        patches = self.patch_projection(level.flatten(1, 3))
        depth, height, width = level.shape[1:4]
        patch = step.part(neighboring_patches_loss(patches, (depth, height, width), batch.volume_B, self.temperature))
        pooled = standardize(features[-1].float().mean((1, 2, 3))).to(features[-1].dtype)
        group = gather_with_gradient(batch.group_B.double()).long()
        volume = step.part(volume_discrimination_loss(self.volume_projection(pooled), group, self.temperature))
        # A term of zero that touches the norms of all levels.
        every_level = sum((features_of_level.mean() for features_of_level in features), features[0].new_zeros(()))
        total = reconstruction + 0.1 * patch + 0.1 * volume + 0.0 * every_level
        return build_loss_output(total, masked_l1=reconstruction, patch_contrast=patch, volume_contrast=volume)

    def _draw_mask(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None) -> Tensor:
        """Draw random squares on the grid of patches, (B, D, H / patch, W / patch) bool, True = masked."""
        config = self.model.config
        batch, _, depth, height, width = pixel_values_B1DHW.shape
        cells = config.mask_unit // config.vision_patch
        rows, columns, hidden = self._mask_units(height, width)
        order = Noise(seed_B, batch, pixel_values_B1DHW.device).uniform(depth, rows * columns).argsort(-1)
        mask = (order < hidden).view(batch, depth, rows, columns)
        return mask.repeat_interleave(cells, 2).repeat_interleave(cells, 3)
