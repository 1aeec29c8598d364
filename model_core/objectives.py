"""What each of the four stages minimises (paper section 4). Each objective wraps the model and holds the heads of its stage only.

Every parameter of :meth:`Objective.trainable` is touched by every batch on every rank, by a term of zero where there is nothing
to learn: DeepSpeed gives wrong gradients, or hangs, otherwise.

Shape letters: B samples, D slices, H rows, W columns, L tokens, N visual tokens, M tokens in a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import IGNORE, TARGET_IMAGE, TARGET_MASK, TARGET_NONE, ImageBatch, PairedBatch, SequenceBatch
from model_core.flow import between
from model_core.heads.image_decoder import Conditions
from model_core.losses.contrastive import image_text, neighbouring_patches, standardised, volume_discrimination
from model_core.losses.pixels import logit_normal_times, mean_per_sample, soft_dice_loss, structural_dissimilarity
from model_core.losses.reduction import gather_with_gradient, global_mean
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput
from model_core.sense import Measured

LOAD_BALANCE_WEIGHT, Z_LOSS_WEIGHT = 0.01, 1e-3
SHARE_OF_NOISE = 0.7
"""Of the image decoder's samples: pure noise (t = 1), where it learns the conditional mean that one-step predictions are."""


@dataclass(frozen=True)
class LossOutput:
    """The loss, with its parts (detached, float32 scalars) for the record."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """One stage's loss."""

    def __init__(self, model: OmniMRIForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @abstractmethod
    def modules_trained(self) -> list[nn.Module]:
        """Modules whose parameters this stage changes."""

    def trainable(self) -> list[nn.Parameter]:
        """Freeze everything, free what this stage trains, and return it, without repeats (tied weights are one)."""
        self.requires_grad_(False)
        found: dict[int, nn.Parameter] = {}
        for module in self.modules_trained():
            for parameter in module.parameters():
                parameter.requires_grad_(True)
                found.setdefault(id(parameter), parameter)
        return list(found.values())

    def begin(self, batches: Iterator[Any]) -> None:
        """Fit what must be fitted on training data before the first step. ``batches`` are those of this stage, from its start."""


class VisionPretraining(Objective):
    """Stage 1: masked image modelling, neighbouring patches, discrimination of volumes (section 4.1)."""

    def __init__(self, model: OmniMRIForConditionalGeneration, temperature: float = 0.1) -> None:
        super().__init__(model)
        config = model.config
        self.temperature = temperature
        self.stride = config.vision_patch * 2**config.connector_level
        self.pixels = nn.Linear(config.level_width(config.connector_level), self.stride**2)
        self.patch_projection = nn.Linear(config.level_width(config.connector_level), 64)
        self.volume_projection = nn.Linear(config.level_width(config.levels - 1), 64)

    def modules_trained(self) -> list[nn.Module]:
        """Encoder and the heads of this stage."""
        return [self.model.vision, self.pixels, self.patch_projection, self.volume_projection]

    def restore(self, pixel_values_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
        """Hide random squares of images; what is seen of them, and the images with what the encoder puts in the holes."""
        hidden, restored = self._hide_and_restore(pixel_values_B1DHW)
        seen = pixel_values_B1DHW * ~hidden[:, None]
        return seen, torch.where(hidden[:, None], restored[:, None], pixel_values_B1DHW)

    def _hide_and_restore(self, pixel_values_B1DHW: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden pixels (B, D, H, W) bool, and the prediction of all pixels, float32."""
        config = self.model.config
        masked = self._hidden_squares(pixel_values_B1DHW)
        features = self.model.vision(pixel_values_B1DHW, masked)
        pixels = self.pixels(features[config.connector_level]).float()
        restored = F.pixel_shuffle(pixels.flatten(0, 1).permute(0, 3, 1, 2), self.stride).unflatten(0, pixels.shape[:2])
        hidden = masked.repeat_interleave(config.vision_patch, 2).repeat_interleave(config.vision_patch, 3)
        return hidden, restored[:, :, 0]

    def forward(self, batch: ImageBatch) -> LossOutput:
        """Hide squares of every slice, reconstruct them, and compare patches and volumes of the unmasked images."""
        config = self.model.config
        hidden, restored = self._hide_and_restore(batch.pixel_values_B1DHW)
        error = (restored - batch.pixel_values_B1DHW[:, 0].float()).abs()
        reconstruction = global_mean((error * hidden).sum(), hidden.sum())
        whole = self.model.vision(batch.pixel_values_B1DHW)
        level = whole[config.connector_level]
        patches = self.patch_projection(level.flatten(1, 3))
        depth, height, width = level.shape[1:4]
        patch = neighbouring_patches(patches, (depth, height, width), batch.volume_B, self.temperature)
        pooled = standardised(whole[-1].mean((1, 2, 3))).to(whole[-1].dtype)
        group = gather_with_gradient(batch.group_B.double()).long()
        volume = volume_discrimination(self.volume_projection(pooled), group, self.temperature)
        untouched = sum((features_of_level.mean() for features_of_level in whole), whole[0].new_zeros(()))
        total = reconstruction + 0.1 * patch + 0.1 * volume + 0.0 * untouched
        return _output(total, masked_l1=reconstruction, patch_contrast=patch, volume_contrast=volume)

    def _hidden_squares(self, pixel_values_B1DHW: Tensor) -> Tensor:
        """Random squares on the grid of patches, (B, D, H / patch, W / patch) bool; at least one hidden and one shown."""
        config = self.model.config
        batch, _, depth, height, width = pixel_values_B1DHW.shape
        cells = config.mask_unit // config.vision_patch
        rows, columns = height // config.mask_unit, width // config.mask_unit
        units = rows * columns
        hidden = min(max(round(units * config.mask_ratio), 1), units - 1)
        order = torch.rand(batch * depth, units, device=pixel_values_B1DHW.device).argsort(-1)
        mask = (order < hidden).view(batch, depth, rows, columns)
        return mask.repeat_interleave(cells, 2).repeat_interleave(cells, 3)


class Alignment(Objective):
    """Stage 2: contrast of images and descriptions, the encoder frozen (section 4.2).

    The text encoder is the backbone itself, so that it starts from Qwen2.5 where a checkpoint is given and what it learns is kept.
    """

    def __init__(self, model: OmniMRIForConditionalGeneration, width: int = 64) -> None:
        super().__init__(model)
        self.image_projection = nn.Linear(model.config.hidden_size, width)
        self.text_projection = nn.Linear(model.config.hidden_size, width)
        self.log_scale = nn.Parameter(torch.full((1,), 2.6592))  # ln(1 / 0.07), as in CLIP

    def modules_trained(self) -> list[nn.Module]:
        """Alignment layer (the connector), text encoder, projections."""
        return [self.model.connector, self.model.backbone, self.image_projection, self.text_projection]

    def trainable(self) -> list[nn.Parameter]:
        """As the base, and the temperature."""
        parameters = super().trainable()
        self.log_scale.requires_grad_(True)
        return [*parameters, self.log_scale]

    def _projected(self, projection: nn.Linear, rows: Tensor) -> Tensor:
        """Rows of all ranks in the shared space."""
        return projection(standardised(rows).to(rows.dtype))

    def forward(self, batch: PairedBatch) -> LossOutput:
        """CLIP loss over the samples of all ranks, with the router's losses."""
        with torch.no_grad():
            features = self.model.vision(batch.pixel_values_B1DHW)
        images = self._projected(self.image_projection, self.model.connector(features).mean(1))
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL)
        last = batch.attention_mask_BL.sum(-1) - 1
        texts = self._projected(self.text_projection, output.hidden_states[torch.arange(len(last), device=last.device), last])
        same = _same_rows(batch.input_ids_BL * batch.attention_mask_BL)
        contrast = image_text(images, texts, same, self.log_scale)
        total = contrast + _router_loss(output)
        with torch.no_grad():
            nearest = (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T).argmax(-1)
            right = same.gather(-1, nearest[:, None]).float().mean()
        return _output(total, contrast=contrast, retrieval_accuracy=right, **_router_parts(output))


class MultimodalPretraining(Objective):
    """Stage 3: the next token, whether text or visual (section 4.3). The encoder stays frozen, and with it the visual target."""

    def __init__(self, model: OmniMRIForConditionalGeneration, draws: int = 4) -> None:
        super().__init__(model)
        self.draws = draws

    def modules_trained(self) -> list[nn.Module]:
        """Connector, backbone, text head and visual-token head."""
        return [self.model.connector, self.model.backbone, self.model.lm_head, self.model.visual_head]

    @torch.no_grad()
    def begin(self, batches: Iterator[SequenceBatch], images: int = 64) -> None:
        """Fit the whitening of the visual target on the first images of the stage."""
        collected: list[Tensor] = []
        for batch in batches:
            collected.extend(batch.pixel_values_B1DHW)
            if len(collected) >= images:
                break
        self.model.fit_visual_target(torch.stack(collected[:images]))

    def forward(self, batch: SequenceBatch) -> LossOutput:
        """Cross-entropy of the text and flow-matching error of the visual tokens, each over its global count."""
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL, batch.pixel_values_B1DHW, batch.visual_loss_B)
        text = _text_loss(output, batch.labels_BL)
        visual = self._visual_loss(output, batch)
        return _output(text + visual + _router_loss(output), text=text, visual=visual, **_router_parts(output))

    def _visual_loss(self, output: OmniMRIOutput, batch: SequenceBatch) -> Tensor:
        """``E || v((1 - t) z + t eps, t, h_i, p_{i+1}) - (eps - z) ||^2 / size``, several draws of (t, eps) for each token."""
        model = self.model
        assert output.features is not None and output.hidden_states is not None
        target_BNz = model.visual_target(output.features)
        grid = model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        carries = batch.visual_loss_B
        before = _position_before_image(batch.input_ids_BL == model.config.image_token_id, target_BNz.shape[1])
        index = before[..., None].expand(-1, -1, output.hidden_states.shape[-1])
        hidden_BNH = output.hidden_states.gather(1, index)
        rows = carries if bool(carries.any()) else torch.arange(len(carries), device=carries.device) == 0
        tokens = target_BNz[rows].flatten(0, 1).repeat(self.draws, 1)
        hidden = hidden_BNH[rows].flatten(0, 1).repeat(self.draws, 1)
        place = model.visual_head.places(grid, tokens.device).repeat(int(rows.sum()) * self.draws, 1)
        time, noise = logit_normal_times(len(tokens), tokens.device), torch.randn_like(tokens)
        error = (model.visual_head(between(tokens, noise, time), time, hidden, place) - (noise - tokens)).square().mean(-1)
        counted = carries.any().float()  # a batch without visual loss still touches the head
        return global_mean(error.sum() * counted, error.new_tensor(float(len(error))) * counted)


class InstructionTuning(Objective):
    """Stage 4: the five tasks in one format (section 4.4)."""

    def modules_trained(self) -> list[nn.Module]:
        """Everything but the visual-token head, which this stage does not use."""
        model = self.model
        return [model.vision, model.connector, model.backbone, model.lm_head, model.image_decoder]

    def forward(self, batch: SequenceBatch) -> LossOutput:
        """Cross-entropy of the responses and the image decoder's losses."""
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL, batch.pixel_values_B1DHW)
        text = _text_loss_by_sample(output, batch.labels_BL)
        image, mask = self._decoder_loss(output, batch)
        total = text + image + mask + _router_loss(output) + 0.0 * self.model.vision.mask_token.sum()
        return _output(total, text=text, image=image, mask=mask, **_router_parts(output))

    def _decoder_loss(self, output: OmniMRIOutput, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Mean loss over the images and over the masks of all ranks."""
        model = self.model
        assert output.features is not None and output.hidden_states is not None
        rows = batch.target_kind_B != TARGET_NONE
        if not bool(rows.any()):
            rows = torch.arange(len(rows), device=rows.device) == 0
        given = Conditions(
            pixel_values_B1DHW=batch.pixel_values_B1DHW[rows],
            features=[level[rows] for level in output.features],
            query_BQ=model.query_states(batch.input_ids_BL, output.hidden_states)[rows],
            kind_B=batch.target_kind_B[rows],
            measured=Measured(batch.kspace_BDHW[rows][:, None], batch.sampling_BDHW[rows]),
        )
        target = batch.target_B1DHW[rows]
        clean = model.image_decoder.target(target, given)
        time, noise = logit_normal_times(len(clean), clean.device, share_of_noise=SHARE_OF_NOISE), torch.randn_like(clean)
        prediction = model.image_decoder(between(clean, noise, time), time, given)
        is_image, is_mask = given.kind_B == TARGET_IMAGE, given.kind_B == TARGET_MASK
        per_image = self._image_error(prediction, clean, target, given)
        per_mask = self._mask_error(prediction, target)
        return (
            global_mean((per_image * is_image).sum(), is_image.sum()),
            global_mean((per_mask * is_mask).sum(), is_mask.sum()),
        )

    def _image_error(self, prediction: Tensor, clean: Tensor, target: Tensor, given: Conditions) -> Tensor:
        """Flow error of the residual, L1 and 1 - SSIM of the data-consistent image, (B,)."""
        image = self.model.image_decoder.image(prediction, given)
        slices, truth = image.transpose(1, 2).flatten(0, 1), target.transpose(1, 2).flatten(0, 1)
        dissimilarity = structural_dissimilarity(slices, truth).unflatten(0, (len(image), -1)).mean(1)
        return mean_per_sample((prediction - clean).square()) + 10 * mean_per_sample((image - target).abs()) + dissimilarity

    def _mask_error(self, logits: Tensor, target: Tensor) -> Tensor:
        """Flow error of the analog bits, soft Dice and cross-entropy, (B,). Samples that are no masks are ignored by the caller."""
        mask = target.clamp(0, 1)
        bits = mean_per_sample((2 * logits.sigmoid() - 2 * mask).square())
        slices, truth = logits.transpose(1, 2).flatten(0, 1), mask.transpose(1, 2).flatten(0, 1)
        dice = soft_dice_loss(slices, truth).unflatten(0, (len(logits), -1)).mean(1)
        return bits + dice + mean_per_sample(F.binary_cross_entropy_with_logits(logits, mask, reduction="none"))


def _text_loss(output: OmniMRIOutput, labels_BL: Tensor) -> Tensor:
    """Next-token cross-entropy over the labelled tokens of all ranks."""
    assert output.logits is not None
    logits, labels = output.logits[:, :-1].float().flatten(0, 1), labels_BL[:, 1:].flatten()
    return global_mean(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"), (labels != IGNORE).sum())


def _text_loss_by_sample(output: OmniMRIOutput, labels_BL: Tensor) -> Tensor:
    """Cross-entropy averaged over each response, then over the responses of all ranks: a report of a hundred tokens counts as much
    as a yes or no, and does not drown it."""
    assert output.logits is not None
    labels = labels_BL[:, 1:]
    each = F.cross_entropy(output.logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")
    tokens_B = (labels != IGNORE).sum(-1)
    return global_mean((each.sum(-1) / tokens_B.clamp(min=1)).sum(), (tokens_B > 0).sum())


def _router_loss(output: OmniMRIOutput) -> Tensor:
    assert output.backbone is not None
    return LOAD_BALANCE_WEIGHT * output.backbone.load_balance_loss + Z_LOSS_WEIGHT * output.backbone.z_loss


def _router_parts(output: OmniMRIOutput) -> dict[str, Tensor]:
    """Router losses, and the busiest expert's load relative to an even one."""
    assert output.backbone is not None
    counts = output.backbone.counts_layers_E.float()
    busiest = (counts / counts.mean(-1, keepdim=True).clamp(min=1)).max()
    return {
        "load_balance": output.backbone.load_balance_loss,
        "router_z": output.backbone.z_loss,
        "busiest_expert": busiest,
    }


def _position_before_image(is_image_BL: Tensor, tokens: int) -> Tensor:
    """Position (B, N) that predicts each visual token: the one before it (0 for an image at the very start)."""
    first = is_image_BL.long().argmax(-1)
    return (first[:, None] - 1 + torch.arange(tokens, device=is_image_BL.device)).clamp(min=0)


def _same_rows(ids_BL: Tensor) -> Tensor:
    """(B, B) bool, B the samples of all ranks: the same text. Padding must be 0."""
    # A sum of hashes rather than the rows themselves, whose padded lengths differ between ranks.
    weights = torch.arange(1, ids_BL.shape[1] + 1, device=ids_BL.device, dtype=torch.float64).sqrt()
    code = gather_with_gradient((ids_BL.double() * weights).sum(-1))
    return (code[:, None] - code[None]).abs() < 1e-6


def _output(total: Tensor, **parts: Tensor) -> LossOutput:
    return LossOutput(total, {name: part.detach().float() for name, part in parts.items()})
