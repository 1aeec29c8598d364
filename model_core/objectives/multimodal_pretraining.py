"""Stage 3: prediction of the next token, text or visual (paper section 4.3).

Shape letters: B samples, L tokens, N visual tokens, H hidden size, z size of the visual target, k any of the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from model_core.batch import IGNORE, SequenceBatch
from model_core.flow import interpolate
from model_core.losses.reduction import Step
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration, OmniMRIOutput
from model_core.noise import Noise
from model_core.objectives.base import LossOutput, Objective, build_loss_output, router_loss, router_parts
from model_core.objectives.text_loss import predicts_label, share_predicted, text_losses


class MultimodalPretraining(Objective):
    """Train connector, backbone and both token heads. The encoder stays frozen, and with it the visual target."""

    def __init__(self, model: OmniMRIForConditionalGeneration, draws: int = 4) -> None:
        super().__init__(model)
        self.draws = draws

    def modules_trained(self) -> list[nn.Module]:
        """Return connector, backbone, text head and visual-token head."""
        return [self.model.connector, self.model.backbone, self.model.lm_head, self.model.visual_head]

    @torch.no_grad()
    def begin(self, batches: Iterator[SequenceBatch], images: int = 64) -> None:
        """Fit the whitening of the visual target on the first images of the stage: slices and volumes, as the batches have them."""
        collected: list[Tensor] = []
        for batch in batches:
            collected.append(batch.pixel_values_B1DHW[: images - sum(map(len, collected))])
            if sum(map(len, collected)) == images:
                break
        self.model.fit_visual_target(collected)

    def counts(self, batch: SequenceBatch) -> dict[str, Tensor]:
        """Count the text tokens and the visual tokens that are predicted."""
        grid = self.model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        return {
            "text": (batch.labels_BL[:, 1:] != IGNORE).sum(),
            "visual": batch.visual_loss_B.sum() * (grid[0] * grid[1] * grid[2]),
        }

    def passes(self, batch: SequenceBatch) -> dict[str, float]:
        """Count one encoder pass (frozen); the visual-token head runs ``draws`` times on images with a visual loss."""
        samples, visual = len(batch.input_ids_BL), float(batch.visual_loss_B.sum())
        trained = dict.fromkeys(("connector", "backbone"), 3 * samples)
        text = {"text head": 3 * samples * share_predicted(batch.labels_BL)}
        return {"Swin encoder": len(batch.pixel_values_B1DHW), **trained, **text, "visual-token head": 3 * self.draws * visual}

    def forward(self, batch: SequenceBatch, step: Step | None = None) -> LossOutput:
        """Compute the text's cross-entropy and the visual tokens' flow-matching error, each over its count in the whole step."""
        step = step or Step.of([self.counts(batch)])
        output = self.model(
            batch.input_ids_BL,
            batch.attention_mask_BL,
            batch.pixel_values_B1DHW,
            batch.visual_loss_B,
            grids_BG3=batch.grids_BG3,
            logits_of_BL=predicts_label(batch.labels_BL),
        )
        text = step.mean("text", text_losses(output, batch.labels_BL, self.model.config.location_token_id).sum())
        visual = step.mean("visual", self._visual_loss(output, batch))
        total = text + visual + router_loss(output, step)
        return build_loss_output(total, output, text=text, visual=visual, **router_parts(output, step))

    def _visual_loss(self, output: OmniMRIOutput, batch: SequenceBatch) -> Tensor:
        """Sum the flow-matching error over visual tokens.

        The error of a token is ``E || v((1 - t) z + t eps, t, h_i, p_{i+1}) - (eps - z) ||^2 / size``, the expectation over
        :attr:`draws` draws of (t, eps).
        """
        model, draws = self.model, self.draws
        assert output.features is not None and output.hidden_states is not None
        target_BNz = model.visual_target(output.features)[batch.image_B]
        grid = model.config.image_grid(*batch.pixel_values_B1DHW.shape[2:])
        has_loss = batch.visual_loss_B
        position_BN = _position_before(batch.input_ids_BL == model.config.image_token_id, target_BNz.shape[1])
        index = position_BN[..., None].expand(-1, -1, output.hidden_states.shape[-1])
        hidden_BNH = output.hidden_states.gather(1, index)
        rows = has_loss if bool(has_loss.any()) else torch.arange(len(has_loss), device=has_loss.device) == 0

        def repeat(x_BNk: Tensor) -> Tensor:
            return x_BNk[rows][:, None].expand(-1, draws, -1, -1).flatten(0, 2)

        tokens, hidden = repeat(target_BNz), repeat(hidden_BNH)
        positions = model.visual_head.position_features(grid, tokens.device).repeat(int(rows.sum()) * draws, 1)
        noise = Noise(None if batch.seed_B is None else batch.seed_B[rows], int(rows.sum()), tokens.device)
        time, eps = noise.times(draws, target_BNz.shape[1]).flatten(), noise.normal(draws, *target_BNz.shape[1:])
        eps = eps.flatten(0, 2)
        velocity = model.visual_head(interpolate(tokens, eps, time), time, hidden, positions)
        error = (velocity - (eps - tokens)).square().mean(-1)
        factor = has_loss.any().float()  # zero for a batch without visual loss, which still touches the head
        return error.sum() * factor / draws


def _position_before(is_image_BL: Tensor, tokens: int) -> Tensor:
    """Return the position (B, N) that predicts each visual token: the one before it (0 for an image at the very start)."""
    first = is_image_BL.long().argmax(-1)
    return (first[:, None] - 1 + torch.arange(tokens, device=is_image_BL.device)).clamp(min=0)
