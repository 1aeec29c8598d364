"""What a stage shows in MLflow: its losses, and what its model makes of held-out images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from components.curation.corpus import Corpus
from components.registries import TASKS
from components.settings import StageName
from components.training.metrics_log import Curve
from components.training.samples import Samples
from model_core.mri_physics.sense import KSpaceMeasurement
from model_core.objectives import Objective, VisionPretraining
from model_core.processing import Processor
from model_core.targets import TARGET_NONE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 4
PARTS = {
    "masked_l1",
    "patch_contrast",
    "volume_contrast",
    "contrast",
    "text",
    "visual",
    "image",
    "mask",
    "load_balance",
    "router_z",
}


def stage_pictures(stage: StageName, objective: Objective, processor: Processor, corpus: Corpus, curve: Curve) -> dict[str, Figure]:
    """File name -> figure. The network is used in its form for evaluation, and left in that for training."""
    samples = Samples.of(corpus, "validation")
    figures: dict[str, Figure] = {}
    objective.eval()
    if isinstance(objective, VisionPretraining) and samples.slices:
        figures["masked_images.png"] = masked_images(objective, samples)
    if stage == "instruction_tuning" and any(samples.instructions[task] for task in _decoded_tasks()):
        figures["decoded_images.png"] = decoded_images(objective, processor, samples)
    objective.train()
    if curve.points:
        figures["losses.png"] = losses(stage, curve)
    if curve.loads:
        figures["expert_load.png"] = expert_load(curve)
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


def losses(stage: StageName, curve: Curve) -> Figure:
    """Every part of the loss, and the loss of every task, by step."""
    from matplotlib.figure import Figure

    names = sorted({name for point in curve.points for name in point if name in PARTS or name.startswith("task/")})
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    steps = [point["step"] for point in curve.points]
    axis.plot(steps, curve.losses, label="loss", linewidth=2, color="black")
    for name in names:
        axis.plot(steps, [point.get(name, float("nan")) for point in curve.points], label=name, linewidth=1)
    axis.set(xlabel="step", title=stage.replace("_", " "), yscale="log")
    axis.legend(fontsize=7)
    return figure


def expert_load(curve: Curve) -> Figure:
    """Heat map: the share of tokens that each expert of each layer got, relative to an even one, over the steps."""
    from matplotlib.figure import Figure

    steps, share = curve.expert_load()
    times, layers, experts = share.shape
    figure = Figure(figsize=(7, max(2.5, 0.14 * layers * experts)), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(
        experts * share.reshape(times, -1).T, aspect="auto", cmap="coolwarm", vmin=0, vmax=2, interpolation="nearest"
    )
    axis.set_xticks(range(0, times, max(times // 8, 1)), [str(step) for step in steps[:: max(times // 8, 1)]])
    axis.set_yticks([layer * experts for layer in range(layers)], [f"layer {layer}" for layer in range(layers)], fontsize=7)
    axis.set(xlabel="steps up to", title="load of the experts, relative to an even one")
    figure.colorbar(shown)
    return figure


@torch.no_grad()
def masked_images(objective: VisionPretraining, samples: Samples) -> Figure:
    """Held-out slices, what was hidden of them, and what the encoder puts in its place."""
    chosen = samples.slices[len(samples.slices) // 10 :: max(len(samples.slices) // SHOWN, 1)][:SHOWN]
    images = torch.stack([torch.from_numpy(samples.image(ref)) for ref in chosen])[:, None, None].to(_device(objective))
    shown, restored = (made.cpu() for made in objective.restore(images, torch.arange(len(images))))
    images = images.cpu()
    rows = []
    for image, visible, whole in zip(images[:, 0, 0], shown[:, 0, 0], restored[:, 0, 0], strict=True):
        rows.append([("image", image.numpy()), ("seen", visible.numpy()), ("restored", whole.numpy())])
    return _grid(rows)


def _decoded_tasks() -> dict[str, int]:
    """Return the tasks whose answers include an output of the image decoder, with its kind."""
    return {name: task.target_kind for name, task in TASKS.items() if task.target_kind != TARGET_NONE}


@torch.no_grad()
def decoded_images(objective: Objective, processor: Processor, samples: Samples) -> Figure:
    """Held-out reconstructions and segmentations: input, truth, prediction."""
    rows, device = [], _device(objective)
    for task, kind in _decoded_tasks().items():
        records = samples.instructions[task]
        for record in records[:: max(len(records) // 3, 1)][:3]:
            image, target = samples.input_and_target(record)
            pixels = torch.from_numpy(image)[None, None, None].to(device)
            tokens = objective.model.image_tokens_for(1, *image.shape)
            ids, mask = processor.pad([processor.encode_answer_prefix(record.instruction, record.response, tokens)])
            made = objective.model.generate_image(
                ids.to(device),
                mask.to(device),
                pixels,
                torch.tensor([kind], device=device),
                measured=KSpaceMeasurement(
                    torch.from_numpy(target.kspace)[None, None, None].to(device),
                    torch.from_numpy(target.sampling.copy())[None, None].to(device),
                ),
            )
            name = record.structure or "image"
            rows.append([("input", image), (name, target.image), ("predicted", F.relu(made)[0, 0, 0].cpu().numpy())])
    return _grid(rows)


def _device(objective: Objective) -> torch.device:
    return next(objective.parameters()).device
