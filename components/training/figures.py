"""Figures of a stage for MLflow: its losses, the experts' load, and predictions on held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from components.curation.corpus import Corpus
from components.registries import TASKS
from components.tasks.measurements import stack_measurements
from components.training.metrics_log import MetricsLog
from components.training.samples import Samples
from components.training.stages.base import Stage
from model_core.objectives import Objective, VisionPretraining
from model_core.processing import Processor
from model_core.targets import TARGET_NONE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MASKED_SHOWN, DECODED_SHOWN = 4, 3
"""Rows of each figure of predictions; for decoded images: per task."""


def stage_figures(stage: Stage, objective: Objective, processor: Processor, corpus: Corpus, log: MetricsLog) -> dict[str, Figure]:
    """Return all figures of a stage: file name -> figure. The network is left in training mode."""
    samples = stage.select_samples(corpus, "validation")
    objective.eval()
    figures = stage.figures(objective, processor, samples)
    objective.train()
    if log.points:
        figures["losses.png"] = loss_curves(stage, log)
    if log.loads:
        figures["expert_load.png"] = expert_load(log)
    return figures


def _image_grid(rows: list[list[tuple[str, Any]]]) -> Figure:
    """Return a figure with a row of titled images for each row."""
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


def loss_curves(stage: Stage, log: MetricsLog) -> Figure:
    """Plot the loss, its parts, and the loss of every task over the steps."""
    from matplotlib.figure import Figure

    names = sorted({name for point in log.points for name in point if name in stage.loss_parts or name.startswith("task/")})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps = [point["step"] for point in log.points]
    axis.plot(steps, log.losses, label="loss", linewidth=2, color="black")
    for name in names:
        axis.plot(steps, [point.get(name, float("nan")) for point in log.points], label=name, linewidth=1)
    axis.set(xlabel="step", title=stage.name.replace("_", " "), yscale="log")
    axis.legend(fontsize=7)
    return figure


def expert_load(log: MetricsLog) -> Figure:
    """Plot a heat map of the share of tokens of each expert of each layer, relative to a uniform load, over the steps."""
    from matplotlib.figure import Figure

    steps, share = log.expert_load()
    times, layers, experts = share.shape
    figure = Figure(figsize=(7, max(2.5, 0.14 * layers * experts)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        experts * share.reshape(times, -1).T, aspect="auto", cmap="coolwarm", vmin=0, vmax=2, interpolation="nearest"
    )
    axis.set_xticks(range(0, times, max(times // 8, 1)), [str(step) for step in steps[:: max(times // 8, 1)]])
    axis.set_yticks([layer * experts for layer in range(layers)], [f"layer {layer}" for layer in range(layers)], fontsize=7)
    axis.set(xlabel="step", title="expert load, relative to uniform")
    figure.colorbar(image)
    return figure


@torch.no_grad()
def masked_images(objective: VisionPretraining, samples: Samples) -> Figure:
    """Show held-out slices, their visible part, and the encoder's restoration of the hidden part."""
    refs = samples.slices[len(samples.slices) // 10 :: max(len(samples.slices) // MASKED_SHOWN, 1)][:MASKED_SHOWN]
    images = torch.stack([torch.from_numpy(samples.image(ref)) for ref in refs])[:, None, None].to(_device(objective))
    visible, restored = (output.cpu() for output in objective.restore(images, torch.arange(len(images))))
    columns = {"image": images.cpu(), "visible": visible, "restored": restored}
    return _image_grid([[(title, column[row, 0, 0].numpy()) for title, column in columns.items()] for row in range(len(refs))])


def decoded_tasks() -> dict[str, int]:
    """Return the tasks whose answers include an output of the image decoder, with its kind."""
    return {name: task.target_kind for name, task in TASKS.items() if task.target_kind != TARGET_NONE}


@torch.no_grad()
def decoded_images(objective: Objective, processor: Processor, samples: Samples) -> Figure:
    """Show held-out reconstructions, segmentations and other outputs of the image decoder: input, target, prediction."""
    rows, device = [], _device(objective)
    for task, kind in decoded_tasks().items():
        records = samples.instructions[task]
        for record in records[:: max(len(records) // DECODED_SHOWN, 1)][:DECODED_SHOWN]:
            image, target = samples.input_and_target(record)
            pixels = torch.from_numpy(image)[None, None, None].to(device)
            tokens = objective.model.image_tokens_for(1, *image.shape)
            ids, mask = processor.pad([processor.encode_answer_prefix(record.instruction, record.response, tokens)])
            decoded = objective.model.generate_image(
                ids.to(device),
                mask.to(device),
                pixels,
                torch.tensor([kind], device=device),
                measured=stack_measurements([target]).to(device),
            )
            name = record.structure or "image"
            rows.append([("input", image), (name, target.image), ("predicted", F.relu(decoded)[0, 0, 0].cpu().numpy())])
    return _image_grid(rows)


def _device(objective: Objective) -> torch.device:
    return next(objective.parameters()).device
