"""Reconstruction of the same slices under other sampling masks and accelerations than those of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.curation.coil_data import read_undersampled
from components.curation.corpus import Corpus
from components.evaluation import metrics
from components.evaluation.baselines import TotalVariation
from components.evaluation.results import SweepRow
from components.provenance import digest
from components.settings import EvaluationSettings, MaskKind
from components.tasks.measurements import zero_filled_images
from model_core.mri_physics.sampling_masks import create_mask

if TYPE_CHECKING:
    from components.evaluation.model_answers import AnswerGenerator, Case

INSTRUCTION = "Reconstruct the image from this under-sampled MRI data."
"""Instruction of the sweep: a trained phrasing that names no acceleration."""


def sweep_masks(
    cases: Sequence[Case],
    answers: AnswerGenerator,
    corpus: Corpus,
    settings: EvaluationSettings,
    compressed_sensing: TotalVariation,
) -> list[SweepRow]:
    """Reconstruct the first ``sweep_cases`` different slices under every kind of mask at every acceleration."""
    slices = list({(case.record.volume_id, case.record.slice_index): case for case in cases}.values())[: settings.sweep_cases]
    rows: list[SweepRow] = []
    for kind in settings.masks if slices else ():
        for acceleration in settings.accelerations:
            undersampled = [_undersample_case(case, kind, acceleration, answers.seed, corpus) for case in slices]
            images = {
                "model": answers.images(undersampled, steps=1, samples=1),
                "total variation": [compressed_sensing.reconstruct(case.target, acceleration) for case in undersampled],
                "zero-filled": zero_filled_images([case.target for case in undersampled]),
            }
            rows.append(SweepRow(kind, acceleration, _score_methods(images, undersampled), len(undersampled)))
    return rows


def _undersample_case(case: Case, kind: MaskKind, acceleration: int, seed: int, corpus: Corpus) -> Case:
    """Undersample the fully sampled slice of a case with another mask."""
    record = case.record.model_copy(update={"instruction": INSTRUCTION, "acceleration": acceleration})
    mask_seed = int(digest(seed, kind, acceleration, record.volume_id, record.slice_index)[:12], 16)
    columns = create_mask(kind, case.image.shape[1], acceleration, mask_seed)
    measured = read_undersampled(corpus.store, record.volume_id, columns, record.slice_index)
    target = replace(case.target, kspace=measured.kspace, sampling=measured.sampling, coil_maps=measured.coil_maps)
    return replace(case, record=record, image=measured.image, target=target)


def _score_methods(images: dict[str, list[NDArray[Any]]], cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """Return metric -> method -> mean over the slices."""
    values: dict[str, dict[str, float]] = {"PSNR, dB": {}, "SSIM": {}, "NMSE": {}}
    for method, predictions in images.items():
        pairs = [(image[None], case.target.image[None]) for image, case in zip(predictions, cases, strict=True)]
        values["PSNR, dB"][method] = float(np.mean([metrics.psnr(a, b, float(b.max())) for a, b in pairs]))
        values["SSIM"][method] = float(np.mean([metrics.ssim(a, b, float(b.max())) for a, b in pairs]))
        values["NMSE"][method] = float(np.mean([metrics.nmse(a, b) for a, b in pairs]))
    return values
