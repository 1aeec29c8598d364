"""What each of the four stages minimises (paper section 4). Each objective wraps the model and holds the heads of its stage only.

Every parameter of :meth:`Objective.trainable` is touched by every batch on every rank, by a term of zero where there is nothing
to learn: DeepSpeed gives wrong gradients, or hangs, otherwise.

Losses are means over the whole optimizer step: :meth:`Objective.counts` says beforehand what a batch has of each, and the losses of
micro-batches and ranks add up. Contrasts and the router's losses are those of a micro-batch, on all ranks.

Shape letters: B samples, D slices, H rows, W columns, L tokens, N visual tokens, M tokens in a loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import IGNORE, NO_TASK, ImageBatch, PairedBatch, SequenceBatch
from model_core.flow import between
from model_core.heads.image_decoder import Conditions
from model_core.losses.contrastive import image_text, neighbouring_patches, standardised, volume_discrimination
from model_core.losses.pixels import mean_per_sample, soft_dice_loss, structural_dissimilarity
from model_core.losses.reduction import Step, gather_with_gradient
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput
from model_core.mri_physics.sense import Measured
from model_core.noise import Noise
from model_core.targets import TARGET_IMAGE, TARGET_MASK, TARGET_NONE

LOAD_BALANCE_WEIGHT, Z_LOSS_WEIGHT = 0.01, 1e-3
SHARE_OF_NOISE = 0.7
"""Of the image decoder's samples: pure noise (t = 1), where it learns the conditional mean that one-step predictions are."""


@dataclass(frozen=True)
class LossOutput:
    """A micro-batch's part of the loss, with its parts (detached, float32) for the record.

    Attributes:
        parts: what adds up over micro-batches to the step's values.
        tasks: task -> (sum of its samples' losses, number of samples), of this rank.
        load_layers_E: tokens of all ranks by layer and expert.
    """

    total: Tensor
    parts: dict[str, Tensor]
    tasks: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    load_layers_E: Tensor | None = None


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

    def counts(self, batch: Any) -> dict[str, Tensor]:
        """What the losses of a batch are means of, by name."""
        return {}

    @abstractmethod
    def passes(self, batch: Any) -> dict[str, float]:
        """Forward passes of a sample that a batch costs, by part (:class:`model_core.accounting.Cost`); a backward pass is two."""

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

    def restore(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hide random squares of images; what is seen of them, and the images with what the encoder puts in the holes."""
        hidden, restored = self._hide_and_restore(pixel_values_B1DHW, seed_B)
        seen = pixel_values_B1DHW * ~hidden[:, None]
        return seen, torch.where(hidden[:, None], restored[:, None], pixel_values_B1DHW)

    def _hide_and_restore(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Hidden pixels (B, D, H, W) bool, and the prediction of all pixels, float32."""
        config = self.model.config
        masked = self._hidden_squares(pixel_values_B1DHW, seed_B)
        features = self.model.vision(pixel_values_B1DHW, masked)
        pixels = self.pixels(features[config.connector_level]).float()
        restored = F.pixel_shuffle(pixels.flatten(0, 1).permute(0, 3, 1, 2), self.stride).unflatten(0, pixels.shape[:2])
        hidden = masked.repeat_interleave(config.vision_patch, 2).repeat_interleave(config.vision_patch, 3)
        return hidden, restored[:, :, 0]

    def _hidden_units(self, height: int, width: int) -> tuple[int, int, int]:
        """Squares of an image: rows, columns, how many are hidden; at least one is, and one is not."""
        config = self.model.config
        rows, columns = height // config.mask_unit, width // config.mask_unit
        return rows, columns, min(max(round(rows * columns * config.mask_ratio), 1), rows * columns - 1)

    def counts(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Hidden pixels."""
        samples, _, depth, height, width = batch.pixel_values_B1DHW.shape
        hidden = self._hidden_units(height, width)[2] * self.model.config.mask_unit**2
        return {"masked_l1": torch.tensor(float(samples * depth * hidden), device=batch.pixel_values_B1DHW.device)}

    def passes(self, batch: ImageBatch) -> dict[str, float]:
        """The encoder sees every image masked and whole."""
        return {"Swin encoder": 6 * len(batch.pixel_values_B1DHW)}

    def forward(self, batch: ImageBatch, step: Step | None = None) -> LossOutput:
        """Hide squares of every slice, reconstruct them, and compare patches and volumes of the unmasked images."""
        config, step = self.model.config, step or Step.of([self.counts(batch)])
        hidden, restored = self._hide_and_restore(batch.pixel_values_B1DHW, batch.seed_B)
        error = (restored - batch.pixel_values_B1DHW[:, 0].float()).abs()
        reconstruction = step.mean("masked_l1", (error * hidden).sum())
        whole = self.model.vision(batch.pixel_values_B1DHW)
        level = whole[config.connector_level]
        patches = self.patch_projection(level.flatten(1, 3))
        depth, height, width = level.shape[1:4]
        patch = step.part(neighbouring_patches(patches, (depth, height, width), batch.volume_B, self.temperature))
        pooled = standardised(whole[-1].float().mean((1, 2, 3))).to(whole[-1].dtype)
        group = gather_with_gradient(batch.group_B.double()).long()
        volume = step.part(volume_discrimination(self.volume_projection(pooled), group, self.temperature))
        untouched = sum((features_of_level.mean() for features_of_level in whole), whole[0].new_zeros(()))
        total = reconstruction + 0.1 * patch + 0.1 * volume + 0.0 * untouched
        return _output(total, masked_l1=reconstruction, patch_contrast=patch, volume_contrast=volume)

    def _hidden_squares(self, pixel_values_B1DHW: Tensor, seed_B: Tensor | None) -> Tensor:
        """Random squares on the grid of patches, (B, D, H / patch, W / patch) bool."""
        config = self.model.config
        batch, _, depth, height, width = pixel_values_B1DHW.shape
        cells = config.mask_unit // config.vision_patch
        rows, columns, hidden = self._hidden_units(height, width)
        order = Noise(seed_B, batch, pixel_values_B1DHW.device).uniform(depth, rows * columns).argsort(-1)
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
        return projection(standardised(rows).to(projection.weight.dtype))

    def passes(self, batch: PairedBatch) -> dict[str, float]:
        """The encoder is frozen."""
        samples = len(batch.input_ids_BL)
        return {"Swin encoder": samples, "connector": 3 * samples, "backbone": 3 * samples}

    def forward(self, batch: PairedBatch, step: Step | None = None) -> LossOutput:
        """CLIP loss over the samples of all ranks, with the router's losses."""
        step = step or Step({})
        with torch.no_grad():
            features = self.model.vision(batch.pixel_values_B1DHW)
        images = self._projected(self.image_projection, self.model.connector(features).float().mean(1))
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL, logits_to_keep=1)  # none are asked for
        last = batch.attention_mask_BL.sum(-1) - 1
        texts = self._projected(self.text_projection, output.hidden_states[torch.arange(len(last), device=last.device), last])
        same = _same_rows(batch.input_ids_BL * batch.attention_mask_BL)
        contrast = step.part(image_text(images, texts, same, self.log_scale))
        total = contrast + _router_loss(output, step)
        with torch.no_grad():
            nearest = (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T).argmax(-1)
            right = step.part(same.gather(-1, nearest[:, None]).float().mean())
        return _output(total, output, contrast=contrast, retrieval_accuracy=right, **_router_parts(output, step))


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

    def counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Tokens of text and visual tokens that are predicted."""
        grid = self.model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        return {
            "text": (batch.labels_BL[:, 1:] != IGNORE).sum(),
            "visual": batch.visual_loss_B.sum() * (grid[0] * grid[1] * grid[2]),
        }

    def passes(self, batch: SequenceBatch) -> dict[str, float]:
        """The encoder is frozen; the visual-token head sees what is predicted, in several draws."""
        samples, visual = len(batch.input_ids_BL), float(batch.visual_loss_B.sum())
        trained = dict.fromkeys(("connector", "backbone"), 3 * samples)
        text = {"text head": 3 * samples * _share_predicted(batch.labels_BL)}
        return {"Swin encoder": samples, **trained, **text, "visual-token head": 3 * self.draws * visual}

    def forward(self, batch: SequenceBatch, step: Step | None = None) -> LossOutput:
        """Cross-entropy of the text and flow-matching error of the visual tokens, each over its count in the whole step."""
        step = step or Step.of([self.counts(batch)])
        output = self.model(
            batch.input_ids_BL,
            batch.attention_mask_BL,
            batch.pixel_values_B1DHW,
            batch.visual_loss_B,
            logits_of_BL=_is_predicted(batch.labels_BL),
        )
        text = step.mean("text", _text_losses(output, batch.labels_BL).sum())
        visual = step.mean("visual", self._visual_loss(output, batch))
        return _output(text + visual + _router_loss(output, step), output, text=text, visual=visual, **_router_parts(output, step))

    def _visual_loss(self, output: OmniMRIOutput, batch: SequenceBatch) -> Tensor:
        """Sum over visual tokens of ``E || v((1 - t) z + t eps, t, h_i, p_{i+1}) - (eps - z) ||^2 / size``, the expectation over
        several draws of (t, eps) for each."""
        model = self.model
        assert output.features is not None and output.hidden_states is not None
        target_BNz = model.visual_target(output.features)
        grid = model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        carries = batch.visual_loss_B
        before = _position_before_image(batch.input_ids_BL == model.config.image_token_id, target_BNz.shape[1])
        index = before[..., None].expand(-1, -1, output.hidden_states.shape[-1])
        hidden_BNH = output.hidden_states.gather(1, index)
        rows = carries if bool(carries.any()) else torch.arange(len(carries), device=carries.device) == 0

        def drawn(x_BNk: Tensor) -> Tensor:
            return x_BNk[rows][:, None].expand(-1, self.draws, -1, -1).flatten(0, 2)

        tokens, hidden = drawn(target_BNz), drawn(hidden_BNH)
        places = model.visual_head.places(grid, tokens.device).repeat(int(rows.sum()) * self.draws, 1)
        noise = Noise(None if batch.seed_B is None else batch.seed_B[rows], int(rows.sum()), tokens.device)
        time, eps = noise.times(self.draws, target_BNz.shape[1]).flatten(), noise.normal(self.draws, *target_BNz.shape[1:])
        eps = eps.flatten(0, 2)
        error = (model.visual_head(between(tokens, eps, time), time, hidden, places) - (eps - tokens)).square().mean(-1)
        counted = carries.any().float()  # a batch without visual loss still touches the head
        return error.sum() * counted / self.draws


class InstructionTuning(Objective):
    """Stage 4: the five tasks in one format (section 4.4)."""

    def modules_trained(self) -> list[nn.Module]:
        """Everything but the visual-token head, which this stage does not use."""
        model = self.model
        return [model.vision, model.connector, model.backbone, model.lm_head, model.image_decoder]

    def trainable(self) -> list[nn.Parameter]:
        """As the base, without the token that stands for what is hidden: nothing is."""
        hidden = self.model.vision.mask_token
        parameters = [parameter for parameter in super().trainable() if parameter is not hidden]
        hidden.requires_grad_(False)
        return parameters

    def counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Responses, images and masks."""
        return {
            "text": (batch.labels_BL[:, 1:] != IGNORE).any(-1).sum(),
            "image": (batch.target_kind_B == TARGET_IMAGE).sum(),
            "mask": (batch.target_kind_B == TARGET_MASK).sum(),
        }

    def passes(self, batch: SequenceBatch) -> dict[str, float]:
        """All is trained; the image decoder sees the samples that ask for it."""
        samples, decoded = len(batch.input_ids_BL), float((batch.target_kind_B != TARGET_NONE).sum())
        trained = dict.fromkeys(("Swin encoder", "connector", "backbone"), 3 * samples)
        return {**trained, "text head": 3 * samples * _share_predicted(batch.labels_BL), "image decoder": 3 * decoded}

    def forward(self, batch: SequenceBatch, step: Step | None = None) -> LossOutput:
        """Cross-entropy of the responses and the image decoder's losses. A response is one, however long: a report of a hundred
        tokens counts as much as a yes or no, and does not drown it."""
        step = step or Step.of([self.counts(batch)])
        asked = _is_predicted(batch.labels_BL)
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL, batch.pixel_values_B1DHW, logits_of_BL=asked)
        tokens_B = (batch.labels_BL[:, 1:] != IGNORE).sum(-1)
        text_B = _text_losses(output, batch.labels_BL).sum(-1) / tokens_B.clamp(min=1)
        image_B, mask_B = self._decoder_losses(output, batch)
        losses = {
            "text": step.mean("text", text_B.sum()),
            "image": step.mean("image", image_B.sum()),
            "mask": step.mean("mask", mask_B.sum()),
        }
        total = sum(losses.values(), _router_loss(output, step))
        by_task = _by_task((text_B + image_B + mask_B).detach(), batch.task_B, batch.tasks)
        return replace(_output(total, output, **losses, **_router_parts(output, step)), tasks=by_task)

    def _decoder_losses(self, output: OmniMRIOutput, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """Losses (B,) of images and of masks, zero where a sample asks for none."""
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
        drawn = Noise(None if batch.seed_B is None else batch.seed_B[rows], len(clean), clean.device)
        time, noise = drawn.times(share_of_noise=SHARE_OF_NOISE), drawn.normal(*clean.shape[1:])
        prediction = model.image_decoder(between(clean, noise, time), time, given)
        per_image = self._image_error(prediction, clean, target, given) * (given.kind_B == TARGET_IMAGE)
        per_mask = self._mask_error(prediction, target) * (given.kind_B == TARGET_MASK)
        nothing = per_image.new_zeros(len(rows))
        place = rows.nonzero().squeeze(-1)
        return nothing.index_add(0, place, per_image), nothing.index_add(0, place, per_mask)

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


def _is_predicted(labels_BL: Tensor) -> Tensor:
    """Tokens after which a labelled one comes, (B, L)."""
    return F.pad(labels_BL[:, 1:] != IGNORE, (0, 1))


def _share_predicted(labels_BL: Tensor) -> float:
    """Of the tokens, those that the text head sees."""
    return float(_is_predicted(labels_BL).float().mean())


def _text_losses(output: OmniMRIOutput, labels_BL: Tensor) -> Tensor:
    """Next-token cross-entropy of every labelled token, at the token before it, zero elsewhere, (B, L). ``output`` has the logits
    of those tokens only."""
    assert output.logits is not None
    predicted_BL = _is_predicted(labels_BL)
    losses_M = F.cross_entropy(output.logits.float(), labels_BL.roll(-1, 1)[predicted_BL], reduction="none")
    return losses_M.new_zeros(labels_BL.shape).masked_scatter(predicted_BL, losses_M)


def _by_task(loss_B: Tensor, task_B: Tensor | None, tasks: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    if task_B is None:
        return {}
    number = torch.where(task_B == NO_TASK, len(tasks), task_B)
    sums, counts = (loss_B.new_zeros(len(tasks) + 1).index_add(0, number, x) for x in (loss_B, torch.ones_like(loss_B)))
    return {task: (sums[place], counts[place]) for place, task in enumerate(tasks)}


def _router_loss(output: OmniMRIOutput, step: Step) -> Tensor:
    assert output.backbone is not None
    return step.part(LOAD_BALANCE_WEIGHT * output.backbone.load_balance_loss + Z_LOSS_WEIGHT * output.backbone.z_loss)


def _router_parts(output: OmniMRIOutput, step: Step) -> dict[str, Tensor]:
    """Router losses, and the busiest expert's load relative to an even one."""
    assert output.backbone is not None
    counts = output.backbone.counts_layers_E.float()
    busiest = (counts / counts.mean(-1, keepdim=True).clamp(min=1)).max()
    return {
        "load_balance": step.part(output.backbone.load_balance_loss),
        "router_z": step.part(output.backbone.z_loss),
        "busiest_expert": step.part(busiest),
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


def _output(total: Tensor, output: OmniMRIOutput | None = None, **parts: Tensor) -> LossOutput:
    load = output.backbone.counts_layers_E if output is not None and output.backbone is not None else None
    return LossOutput(total, {name: part.detach().float() for name, part in parts.items()}, load_layers_E=load)
