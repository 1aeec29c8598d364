"""Stage 2: contrast of images and descriptions (paper section 4.2).

Shape letters: B samples, L tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_core.batch import PairedBatch
from model_core.losses.contrastive import image_text_loss, standardize
from model_core.losses.reduction import Step, gather_with_gradient
from model_core.modeling_omnimri import OmniMRIForConditionalGeneration
from model_core.objectives.base import LossOutput, Objective, build_loss_output, router_loss, router_parts


class Alignment(Objective):
    """Train the connector and the text encoder by CLIP's loss, with the image encoder frozen.

    The text encoder is the backbone itself: it starts from Qwen2.5 if a checkpoint is given, and later stages keep what it learns.
    """

    def __init__(self, model: OmniMRIForConditionalGeneration, width: int = 64) -> None:
        super().__init__(model)
        self.image_projection = nn.Linear(model.config.hidden_size, width)
        self.text_projection = nn.Linear(model.config.hidden_size, width)
        self.log_scale = nn.Parameter(torch.full((1,), 2.6592))  # ln(1 / 0.07), as in CLIP

    def modules_trained(self) -> list[nn.Module]:
        """Return the alignment layer (the connector), the text encoder, and the projections."""
        return [self.model.connector, self.model.backbone, self.image_projection, self.text_projection]

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of the base class and the temperature."""
        parameters = super().trainable()
        self.log_scale.requires_grad_(True)
        return [*parameters, self.log_scale]

    def _project(self, projection: nn.Linear, rows: Tensor) -> Tensor:
        """Return the rows of all ranks in the shared space."""
        return projection(standardize(rows).to(projection.weight.dtype))

    def passes(self, batch: PairedBatch) -> dict[str, float]:
        """Count one encoder pass (frozen), and trained passes of connector and backbone."""
        samples = len(batch.input_ids_BL)
        return {"Swin encoder": samples, "connector": 3 * samples, "backbone": 3 * samples}

    def forward(self, batch: PairedBatch, step: Step | None = None) -> LossOutput:
        """Compute CLIP's loss over the samples of all ranks, with the router's losses."""
        step = step or Step({})
        with torch.no_grad():
            features = self.model.vision(batch.pixel_values_B1DHW)
        images = self._project(self.image_projection, self.model.connector(features).float().mean(1))
        output = self.model(batch.input_ids_BL, batch.attention_mask_BL, logits_to_keep=1)  # the logits are not used
        last = batch.attention_mask_BL.sum(-1) - 1
        texts = self._project(self.text_projection, output.hidden_states[torch.arange(len(last), device=last.device), last])
        same = _same_text(batch.input_ids_BL * batch.attention_mask_BL)
        contrast = step.part(image_text_loss(images, texts, same, self.log_scale))
        total = contrast + router_loss(output, step)
        with torch.no_grad():
            nearest = (F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T).argmax(-1)
            accuracy = step.part(same.gather(-1, nearest[:, None]).float().mean())
        return build_loss_output(total, output, contrast=contrast, retrieval_accuracy=accuracy, **router_parts(output, step))


def _same_text(ids_BL: Tensor) -> Tensor:
    """Return which pairs of samples of all ranks have the same text, (B, B) bool. Padding must be 0."""
    # Compare a sum of hashes rather than the rows themselves, whose padded lengths differ between ranks.
    weights = torch.arange(1, ids_BL.shape[1] + 1, device=ids_BL.device, dtype=torch.float64).sqrt()
    code = gather_with_gradient((ids_BL.double() * weights).sum(-1))
    return (code[:, None] - code[None]).abs() < 1e-6
