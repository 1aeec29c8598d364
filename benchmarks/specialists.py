"""A network for one task beside the network for all: the same patients, samples and augmentation.

python -m benchmarks.specialists --profile demo --seeds 3 [--home .omnimri] [--set evaluation.cases_per_task=200]

Every sample of stage 4 with a label map, slice or volume, trains MONAI's BasicUNet (masks; boxes and presence are read off its
lesion mask), every reconstruction trains a U-Net on zero-filled magnitudes as fastMRI's baseline (arXiv:1811.08839, section 5.2).
The tasks of ``omnimri evaluate`` score all of them on the same cases. The stages of the generalist are reused if they are trained.

Shape letters: B samples, D slices, T target slices, N slices of all samples, S structures, H rows, W columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import versions, write_rows
from benchmarks.stages import (
    Row,
    home_of,
    measure_tasks,
    parse_arguments,
    print_rows,
    seeds_of,
    settings_of,
    summarize,
    train_stages,
)
from components.curation.corpus import Corpus
from components.curation.text.structure_names import is_lesion
from components.evaluation.case_selection import select_cases
from components.evaluation.model_answers import Case, load_cases
from components.evaluation.organ_findings import measure_volumetry
from components.progress import track
from components.registries import STAGES, TASKS
from components.settings import EvaluationSettings, Settings, StageSettings
from components.tasks.findings import evidence
from components.tasks.known_structures import Shown
from components.tasks.volumetry import NO_VOLUMETRY, Shares, Volumetry, measure_shares
from components.training.batches import StageBatches
from components.training.samples import Samples
from model_core import OmniMRIForConditionalGeneration
from model_core.batch import SequenceBatch, select_slices
from model_core.losses.pixels import structural_dissimilarity
from model_core.processing import Processor
from model_core.targets import TARGET_IMAGE

FEATURES = (16, 16, 32, 64, 128, 16)
"""Channels of both U-Nets: half a million parameters."""
RATE = 3e-3
"""Peak learning rate of OneCycle, the best of three for masks."""
BATCH = 32
"""Images that the network for masks sees at once."""
MEASURED = ("reconstruction", "segmentation", "detection", "diagnosis")


@dataclass
class Specialists:
    """Networks for masks and for reconstruction, which answer as :class:`components.evaluation.model_answers.AnswerGenerator`.

    Attributes:
        masks: one channel for the background and one for each structure.
        reconstruction: residual of the zero-filled image.
        structures_of_masks: names of the structures.
        settings, seed: of the evaluation.
        shares, volumetry: findings of whole organs, as for the generalist.
    """

    masks: nn.Module
    reconstruction: nn.Module
    structures_of_masks: tuple[str, ...]
    settings: EvaluationSettings
    seed: int
    shares: dict[str, Shares] = field(default_factory=dict)
    volumetry: Volumetry = NO_VOLUMETRY

    @torch.no_grad()
    def images(self, cases: Sequence[Case], *_: object, **__: object) -> list[NDArray[np.float32]]:
        """Return reconstructions, or the probability of the structure or of any lesion."""
        if not cases:
            return []
        if cases[0].record.task == "reconstruction":
            pixels = torch.from_numpy(np.stack([case.image for case in cases]))[:, None]
            return list(reconstruct(self.reconstruction, pixels)[:, 0].numpy())
        shown = self.structures(cases)
        asked = [case.record.structure for case in cases]
        return [one.structures[name] if name else one.mask for one, name in zip(shown, asked, strict=True)]

    def texts(self, cases: Sequence[Case], *_: object) -> list[str]:
        """Return the name of a finding."""
        return ["lesion"] * len(cases)

    def structures(self, cases: Sequence[Case]) -> list[Shown]:
        """Return the probability of every structure, and that of all lesions as mask."""
        if not cases:
            return []
        shown = self.show(np.stack([case.image for case in cases]))
        return [
            Shown(mask_HW, {name: values[index] for name, values in shown.structures.items()})
            for index, mask_HW in enumerate(shown.mask)
        ]

    @torch.no_grad()
    def show(self, images_NHW: NDArray[np.float32]) -> Shown:
        """Return what the network for masks sees on images, or on the slices of a volume."""
        batches = torch.from_numpy(images_NHW)[:, None].split(BATCH)
        probability_SNHW = torch.cat([self.masks(batch).softmax(1)[:, 1:] for batch in batches]).transpose(0, 1).numpy()
        lesions = [index for index, name in enumerate(self.structures_of_masks) if is_lesion(name)]
        return Shown(probability_SNHW[lesions].sum(0), dict(zip(self.structures_of_masks, probability_SNHW, strict=True)))

    def learn_volumetry(self, corpus: Corpus) -> None:
        """Measure the structures of the volumes of validation and test patients, and fit the findings of whole organs."""
        for volume_id, record in corpus.volumes.items():
            if record.split != "train":
                voxels_DHW = corpus.store.read(volume_id, "voxels").astype(np.float32)
                self.shares[volume_id] = measure_shares(self.show(voxels_DHW), record.spacing_mm)
        self.volumetry = measure_volumetry(self, corpus, self.settings)  # type: ignore[arg-type]

    def yes_probabilities(self, cases: Sequence[Case]) -> list[float]:
        """Return the mean lesion probability of the pixels where it is highest."""
        return [evidence(image) for image in self.images(cases)]


def reconstruct(network: nn.Module, zero_filled_B1HW: Tensor) -> Tensor:
    """Return the magnitude image of a zero-filled one, normalized to mean 0 and deviation 1 for the network."""
    mean, deviation = zero_filled_B1HW.mean((2, 3), keepdim=True), zero_filled_B1HW.std((2, 3), keepdim=True) + 1e-6
    return (network((zero_filled_B1HW - mean) / deviation) * deviation + zero_filled_B1HW).clamp(min=0)


def mask_loss(network: nn.Module, batch: SequenceBatch, rows_B: Tensor) -> Tensor:
    """Return cross-entropy plus 1 - soft Dice over all slices of the samples with a label map."""
    assert batch.structures_BDHW is not None
    slices_BDHW = batch.pixel_values_B1DHW[batch.image_B[rows_B]][:, 0]
    logits_NSHW, truth_NHW = network(_as_images(slices_BDHW)), batch.structures_BDHW[rows_B].flatten(0, 1)
    probability_NSHW = logits_NSHW.softmax(1)[:, 1:]
    one_hot_NSHW = F.one_hot(truth_NHW, logits_NSHW.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    shared_S, both_S = (probability_NSHW * one_hot_NSHW).sum((0, 2, 3)), (probability_NSHW + one_hot_NSHW).sum((0, 2, 3))
    return F.cross_entropy(logits_NSHW, truth_NHW) + (1 - (2 * shared_S + 1) / (both_S + 1)).mean()


def reconstruction_loss(network: nn.Module, batch: SequenceBatch, rows_B: Tensor) -> Tensor:
    """Return absolute error plus structural dissimilarity over the target slices of the reconstructions."""
    slices_BT = None if batch.slices_BT is None else batch.slices_BT[rows_B]
    start_BTHW = select_slices(batch.pixel_values_B1DHW[batch.image_B[rows_B]][:, 0], slices_BT, 1)
    target_N1HW = _as_images(batch.target_B1DHW[rows_B][:, 0])
    image_N1HW = reconstruct(network, _as_images(start_BTHW))
    return 10 * (image_N1HW - target_N1HW).abs().mean() + structural_dissimilarity(image_N1HW, target_N1HW).mean()


def _as_images(slices_BDHW: Tensor) -> Tensor:
    """Return the slices of all samples as (N, 1, H, W)."""
    return slices_BDHW.flatten(0, 1)[:, None]


def train_specialists(batches: StageBatches, steps: int, structures: int, seed: int) -> tuple[nn.Module, nn.Module, list[int]]:
    """Train both networks on the batches of stage 4; return them and the numbers of samples that they saw."""
    torch.manual_seed(seed)
    networks = [BasicUNet(2, 1, channels, features=FEATURES) for channels in (structures + 1, 1)]
    optimizers = [torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.01) for network in networks]
    schedules = [torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1) for optimizer in optimizers]
    seen = [0, 0]
    for step in track(range(steps), "specialists"):
        for batch in batches[step]:  # with accumulation, each micro-batch is a step
            for index, rows_B in enumerate((batch.labeled_B, batch.target_kind_B == TARGET_IMAGE)):
                if rows_B.any():
                    optimizers[index].zero_grad()
                    loss = (mask_loss, reconstruction_loss)[index](networks[index], batch, rows_B)
                    loss.backward()
                    nn.utils.clip_grad_norm_(networks[index].parameters(), 1.0)
                    optimizers[index].step()
                    seen[index] += int(rows_B.sum())
        for schedule in schedules:
            schedule.step()
    return networks[0].eval(), networks[1].eval(), seen


def of_all_processes(stage: StageSettings, processes: int) -> StageSettings:
    """Return the stage with which one process sees the samples that several see together in every step."""
    sizes = {"micro_batch": stage.micro_batch * processes, "volume_samples": stage.volume_samples_total(processes)}
    return stage.model_copy(update=sizes)


def measure_specialists(settings: Settings, corpus: Corpus, processor: Processor, config: object) -> list[Row]:
    """Train the specialists of a seed and score them with the tasks of the evaluation."""
    samples, stage = Samples.from_corpus(corpus, "train"), settings.training.stage("instruction_tuning")
    stage = of_all_processes(stage, settings.training.processes)
    batches = StageBatches(STAGES["instruction_tuning"], samples, stage, config, processor, settings.seed)  # type: ignore[arg-type]
    masks, images, seen = train_specialists(batches, stage.steps, len(samples.structures), settings.seed)
    answers = Specialists(masks, images, samples.structures, settings.evaluation, settings.seed)
    answers.learn_volumetry(corpus)
    rows: list[Row] = []
    for task, records in select_cases(corpus, settings.evaluation.cases_per_task, settings.seed).items():
        if task in MEASURED and records:
            result = TASKS[task].evaluate(load_cases(corpus, records), answers, corpus, settings.evaluation)  # type: ignore[arg-type]
            count = seen[1] if task == "reconstruction" else seen[0]
            name = f"specialist ({count} samples)"
            for row in result.rows:
                best = (max if row.higher_is_better else min)(row.baselines.values())
                rows.append({"stage": name, "figure": f"{task}: {row.metric}", "value": row.model, "trivial": best})
    return rows


def main() -> None:
    """Train, measure, and write the results."""
    arguments = parse_arguments(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    home = home_of(arguments)
    corpus = Corpus.open(home.curated)
    rows: list[Row] = []
    for seed in seeds_of(arguments):
        settings = settings_of(arguments, seed)
        generalist = train_stages(settings, home)[-1]
        rows += [{"stage": "generalist", **row} for row in measure_tasks(generalist, corpus, settings, home)]
        config = OmniMRIForConditionalGeneration.from_pretrained(generalist.model_dir).config
        rows += measure_specialists(settings, corpus, Processor.from_pretrained(generalist.model_dir), config)
    write_rows(f"specialists_{arguments.profile}", print_rows(summarize(rows)), versions())


if __name__ == "__main__":
    main()
