"""Stage 4: all tasks in one format of instruction and response (paper section 4.4).

Shape letters: B samples, R chosen ones of them, D slices, H rows, W columns, L tokens.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import IGNORE, NO_TASK, SequenceBatch, select_slices
from model_core.flow import interpolate
from model_core.heads.image_decoder import Conditions
from model_core.heads.structures import StructureHead, embed_names, pixel_losses
from model_core.losses.pixels import mean_per_sample, soft_dice_loss, structural_dissimilarity
from model_core.losses.reduction import Step
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput
from model_core.noise import Noise
from model_core.objectives.base import LossOutput, Objective, build_loss_output, router_loss, router_parts
from model_core.objectives.text_loss import predicts_label, share_predicted, text_losses
from model_core.sequences import index_image_blocks
from model_core.targets import TARGET_IMAGE, TARGET_MASK, TARGET_NONE

LEAST_WEIGHT = 0.01
"""Weight of a token that the network is certain of; that of one with probability p is larger by 1 - p (arXiv:1708.02002)."""
PURE_NOISE_SHARE = 0.85
"""Share of the image decoder's samples at pure noise (t = 1), where it learns the conditional mean of one-step predictions; at
earlier times its input contains the target, which teaches nothing about seeing it."""

REFINED_SHARE = 0.5
"""Share of the reconstructions that start from the network's own estimate (:meth:`ImageDecoder.refine`), as predictions do."""


class InstructionTuning(Objective):
    """Train the whole model but the visual-token head on instructions, responses, target images and masks.

    Every sample with a label map teaches all of its structures, whatever its instruction is: in the features of the image decoder's
    pixels and in the hidden states of the visual tokens (:class:`model_core.heads.structures.StructureHead`).

    Args:
        structure_weight: weight of these auxiliary losses.
    """

    def __init__(self, model: OmniMRIForConditionalGeneration, structure_weight: float = 1.0) -> None:
        super().__init__(model)
        self.structure_weight = structure_weight
        self.structures = StructureHead(model.config)

    def modules_trained(self) -> list[nn.Module]:
        """Return all modules but the visual-token head, which this stage does not use."""
        model = self.model
        return [model.vision, model.connector, model.backbone, model.lm_head, model.image_decoder, self.structures]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of the base class without the mask token: no input is masked in this stage."""
        mask_token = self.model.vision.mask_token
        parameters = [parameter for parameter in super().trainable() if parameter is not mask_token]
        mask_token.requires_grad_(False)
        return parameters

    def counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Count responses, target images, target masks and label maps."""
        return {
            "text": (batch.labels_BL[:, 1:] != IGNORE).any(-1).sum(),
            "image": (batch.target_kind_B == TARGET_IMAGE).sum(),
            "mask": (batch.target_kind_B == TARGET_MASK).sum(),
            "structures": batch.labeled_B.sum(),
        }

    def passes(self, batch: SequenceBatch) -> dict[str, float]:
        """Count trained passes of all modules; the image decoder runs on samples with an image, a mask or a label map.

        Of the images a share is decoded once more, without gradients.
        """
        samples, images = len(batch.input_ids_BL), len(batch.pixel_values_B1DHW)
        measured_B = (batch.target_kind_B == TARGET_IMAGE) & batch.sampling_BDHW.flatten(1).any(1)
        refined = REFINED_SHARE * float(measured_B.sum()) if self.model.config.refinements else 0.0
        decoded = 3 * float(self._decoded(batch).sum()) + refined
        if batch.slices_BT is not None:
            decoded *= batch.slices_BT.shape[1] / batch.pixel_values_B1DHW.shape[2]
        trained = {"Swin encoder": 3 * images, "connector": 3 * images, "backbone": 3 * samples}
        return {**trained, "text head": 3 * samples * share_predicted(batch.labels_BL), "image decoder": decoded}

    def forward(self, batch: SequenceBatch, step: Step | None = None) -> LossOutput:
        """Compute the cross-entropy of the responses and the losses of the image decoder.

        Every response counts as one, whatever its length: a report of a hundred tokens has the weight of a yes or no. Within a
        response, a token counts as much as the network is wrong about it: most tokens of a report are the same in all reports, and
        few decide what it says.
        """
        step = step or Step.of([self.counts(batch)])
        predicted_BL = predicts_label(batch.labels_BL)
        output = self.model(
            batch.input_ids_BL,
            batch.attention_mask_BL,
            batch.pixel_values_B1DHW,
            grids_BG3=batch.grids_BG3,
            logits_of_BL=predicted_BL,
        )
        text_BL = text_losses(output, batch.labels_BL, self.model.config.location_token_id)
        weight_BL = (1 - (-text_BL.detach()).exp() + LEAST_WEIGHT) * predicted_BL
        text_B = (weight_BL * text_BL).sum(-1) / weight_BL.sum(-1).clamp(min=LEAST_WEIGHT)
        image_B, mask_B, structures_B = self._decoder_losses(output, batch)
        losses = {
            "text": step.mean("text", text_B.sum()),
            "image": step.mean("image", image_B.sum()),
            "mask": step.mean("mask", mask_B.sum()),
            "structures": step.mean("structures", self.structure_weight * structures_B.sum()),
        }
        total = sum(losses.values(), router_loss(output, step))
        tasks = _sum_by_task((text_B + image_B + mask_B).detach(), batch.task_B, batch.tasks)
        return replace(build_loss_output(total, output, **losses, **router_parts(output, step)), tasks=tasks)

    def _decoded(self, batch: SequenceBatch) -> Tensor:
        """Return the samples that the image decoder runs on, (B,) bool."""
        rows = batch.target_kind_B != TARGET_NONE
        return rows | batch.labeled_B if self.structure_weight else rows

    def _decoder_losses(self, output: OmniMRIOutput, batch: SequenceBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the losses (B,) of images, of masks and of structures, zero for samples without such a target."""
        model = self.model
        assert output.features is not None and output.hidden_states is not None
        rows = self._decoded(batch).nonzero().squeeze(-1)  # numbers: every use of a mask would wait for a GPU
        if not len(rows):
            rows = rows.new_zeros(1)
        images, slices = batch.image_B[rows], None if batch.slices_BT is None else batch.slices_BT[rows]
        conditions = Conditions(
            pixel_values_B1DHW=select_slices(batch.pixel_values_B1DHW[images], slices, 2),
            features=[select_slices(level[images], slices, 1) for level in output.features],
            query_BQ=model.query_states(batch.input_ids_BL, output.hidden_states)[rows],
            kind_B=batch.target_kind_B[rows],
            measured=batch.measured.rows(rows),
        )
        target = batch.target_B1DHW[rows]
        generator = Noise(None if batch.seed_B is None else batch.seed_B[rows], len(target), target.device)
        time, noise = generator.times(share_of_noise=PURE_NOISE_SHARE), generator.normal(*target.shape[1:])
        if model.config.refinements:
            is_refined = (generator.uniform() < REFINED_SHARE) & conditions.is_reconstruction_B
            conditions = model.image_decoder.refine(conditions, is_refined)
        clean = model.image_decoder.encode_target(target, conditions)
        time = torch.where(conditions.kind_B == TARGET_NONE, torch.ones_like(time), time)
        prediction, pixels = model.image_decoder(interpolate(clean, noise, time), time, conditions)
        mask_losses = self._mask_loss(prediction, target) * (conditions.kind_B == TARGET_MASK)
        image_losses = self._image_losses(prediction, target, conditions)
        structure_losses = self._structure_losses(output, pixels, batch, rows)
        zeros = image_losses.new_zeros(len(batch.target_kind_B))
        by_image, by_mask, by_structure = (
            zeros.index_add(0, rows, losses) for losses in (image_losses, mask_losses, structure_losses)
        )
        return by_image, by_mask, by_structure

    def _structure_losses(self, output: OmniMRIOutput, pixels_BcDHW: Tensor, batch: SequenceBatch, rows_R: Tensor) -> Tensor:
        """Return the losses of the label maps of the chosen samples, by pixel and by visual token."""
        model, labels = self.model, batch.structure_labels(rows_R)
        assert output.hidden_states is not None
        grid = model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        chosen = batch.input_ids_BL[rows_R] == model.config.image_token_id
        if batch.grids_BG3 is not None:
            _, block = index_image_blocks(chosen, batch.grids_BG3[rows_R])
            chosen = block == batch.target_block_B[rows_R, None] + 1
        hidden_BNh = output.hidden_states[rows_R][chosen].unflatten(0, (len(chosen), -1))
        names_Sh = embed_names(model.get_input_embeddings(), labels.names_SL, model.config.pad_token_id)
        slices = None if batch.slices_BT is None else batch.slices_BT[rows_R]
        decoded = replace(labels, structures_BDHW=select_slices(labels.structures_BDHW, slices, 1))
        by_pixel = pixel_losses(model.image_decoder.structure_logits(pixels_BcDHW, names_Sh), decoded)
        return by_pixel + self.structures.token_losses(hidden_BNh, names_Sh, labels, grid)

    def _image_losses(self, prediction: Tensor, target: Tensor, conditions: Conditions) -> Tensor:
        """Return the flow error of the magnitude plus L1 and 1 - SSIM of the data-consistent image, (B,); zero for other targets.

        The flow error is that of the residual, in its unit, where no predicted magnitude is negative.

        Few samples of a batch have an image as their target, and agreement with k-space costs Fourier transforms: it is computed
        for these alone.
        """
        rows = (conditions.kind_B == TARGET_IMAGE).nonzero().squeeze(-1)
        prediction_R, target_R = prediction[rows], target[rows]
        pixels_R, measured = conditions.pixel_values_B1DHW[rows], conditions.measured.rows(rows)
        image = self.model.image_decoder.decode_image(prediction_R, pixels_R, measured)
        slices, truth = image.transpose(1, 2).flatten(0, 1), target_R.transpose(1, 2).flatten(0, 1)
        dissimilarity = structural_dissimilarity(slices, truth).unflatten(0, (len(rows), target.shape[2])).mean(1)
        magnitude = self.model.image_decoder.predicted_magnitude(prediction_R, pixels_R)
        flow_error = mean_per_sample(((magnitude - target_R) / self.model.image_decoder.residual_scale).square())
        losses = flow_error + 10 * mean_per_sample((image - target_R).abs()) + dissimilarity
        return losses.new_zeros(len(prediction)).index_add(0, rows, losses)

    def _mask_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the flow error of the analog bits plus cross-entropy and, unless the mask is empty, 1 - soft Dice, (B,).

        On an empty mask the Dice of any prediction is nearly zero: its gradient would only teach to find nothing. The caller
        discards the values of samples whose target is not a mask.
        """
        mask = target.clamp(0, 1)
        bits = mean_per_sample((2 * logits.sigmoid() - 2 * mask).square())
        slices, truth = logits.transpose(1, 2).flatten(0, 1), mask.transpose(1, 2).flatten(0, 1)
        dice = (soft_dice_loss(slices, truth) * truth.flatten(1).any(1)).unflatten(0, (len(logits), -1)).mean(1)
        return bits + dice + mean_per_sample(F.binary_cross_entropy_with_logits(logits, mask, reduction="none"))


def _sum_by_task(loss_B: Tensor, task_B: Tensor | None, tasks: tuple[str, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return task -> (sum of its losses, number of its samples)."""
    if task_B is None:
        return {}
    index = torch.where(task_B == NO_TASK, len(tasks), task_B)
    sums, counts = (loss_B.new_zeros(len(tasks) + 1).index_add(0, index, x) for x in (loss_B, torch.ones_like(loss_B)))
    return {task: (sums[number], counts[number]) for number, task in enumerate(tasks)}
