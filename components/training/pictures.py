"""What a stage shows in MLflow: its losses, and what its model makes of held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from components.curation.corpus import Corpus
from components.settings import StageName
from components.training.samples import Samples
from model_core.batch import TARGET_IMAGE, TARGET_MASK
from model_core.objectives import Objective, VisionPretraining
from model_core.processing import Processor
from model_core.sense import Measured

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
HIDDEN_FROM_CURVE = {"step", "learning_rate", "gradient_norm", "seconds", "samples_per_second", "loss"}


def stage_pictures(
    stage: StageName, objective: Objective, processor: Processor, corpus: Corpus, curve: list[dict[str, float]]
) -> dict[str, Figure]:
    """File name -> figure."""
    figures = {"losses.png": losses(stage, curve)}
    samples = Samples.of(corpus, "validation")
    if isinstance(objective, VisionPretraining) and samples.slices:
        figures["masked_images.png"] = masked_images(objective, samples)
    if stage == "instruction_tuning" and (samples.instructions["segmentation"] or samples.instructions["reconstruction"]):
        figures["decoded_images.png"] = decoded_images(objective, processor, samples)
    return figures


def _grid(rows: list[list[tuple[str, Any]]]) -> Figure:
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.2 * columns, 2.4 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, row_axes in zip(rows, axes, strict=True):
        for axis in row_axes:
            axis.set_axis_off()
        for axis, (title, image) in zip(row_axes, row, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=8)
    return figure


def losses(stage: StageName, curve: list[dict[str, float]]) -> Figure:
    """Every part of the loss by step."""
    from matplotlib.figure import Figure

    names = sorted({name for point in curve for name in point} - HIDDEN_FROM_CURVE)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps = [point["step"] for point in curve]
    axis.plot(steps, [point["loss"] for point in curve], label="loss", linewidth=2, color="black")
    for name in names:
        axis.plot(steps, [point.get(name, float("nan")) for point in curve], label=name, linewidth=1)
    axis.set(xlabel="step", title=stage.replace("_", " "), yscale="log")
    axis.legend(fontsize=7)
    return figure


@torch.no_grad()
def masked_images(objective: VisionPretraining, samples: Samples) -> Figure:
    """Held-out slices, what was hidden of them, and what the encoder puts in its place."""
    chosen = samples.slices[len(samples.slices) // 10 :: max(len(samples.slices) // SHOWN, 1)][:SHOWN]
    images = torch.stack([torch.from_numpy(samples.image(ref)) for ref in chosen])[:, None, None]
    torch.manual_seed(0)
    shown, restored = objective.restore(images)
    rows = []
    for image, visible, whole in zip(images[:, 0, 0], shown[:, 0, 0], restored[:, 0, 0], strict=True):
        rows.append([("image", image.numpy()), ("seen", visible.numpy()), ("restored", whole.numpy())])
    return _grid(rows)


@torch.no_grad()
def decoded_images(objective: Objective, processor: Processor, samples: Samples) -> Figure:
    """Held-out reconstructions and segmentations: input, truth, prediction."""
    rows = []
    for task, kind in (("reconstruction", TARGET_IMAGE), ("segmentation", TARGET_MASK)):
        records = samples.instructions[task]
        for record in records[:: max(len(records) // 3, 1)][:3]:
            image, target = samples.input_and_target(record)
            pixels = torch.from_numpy(image)[None, None, None]
            tokens = objective.model.image_tokens_for(1, *image.shape)
            ids, mask = processor.pad([processor.encode_answer_prefix(record.instruction, record.response, tokens)])
            made = objective.model.generate_image(
                ids, mask, pixels, torch.tensor([kind]),
                measured=Measured(torch.from_numpy(target.kspace)[None, None, None],
                                  torch.from_numpy(target.sampling.copy())[None, None]),
            )  # fmt: skip
            name = record.structure or "image"
            rows.append([("input", image), (name, target.image), ("predicted", F.relu(made)[0, 0, 0].numpy())])
    return _grid(rows)
